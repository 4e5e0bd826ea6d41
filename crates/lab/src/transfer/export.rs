//! `GET /export`, `GET /export_raw_vdi`, `GET /pool/xmldbdump`.

use std::sync::Arc;

use bytes::Bytes;
use disks::{BlockRead as _, ByteStream, Shape, View};
use tokio::sync::mpsc;
use uuid::Uuid;
use xva::{Compression, Compressor};

use super::{Outlet, Stop, Transfer, ova, refuse};
use crate::failure::Failure;
use crate::fault::Fault;
use crate::http::{Connection, HttpError};
use crate::pool::{Plug, Pool};
use crate::rpc::Task;

/// What an export of a disk sends.
enum Format {
    Raw,
    Vhd,
}

/// A disk of the pool, attached for a transfer.
struct Attached {
    view: View,
    id: Uuid,
    /// Held for as long as the transfer lasts.
    _plug: Plug,
}

/// Attaches a disk for reading, or says why that cannot be.
fn attach(pool: &Arc<Pool>, vdi: &str) -> Result<Attached, Failure> {
    let (id, used) = pool.db.with(|store| {
        if store.text("VDI", vdi, "type")? == "cbt_metadata" {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, "cbt_metadata"]));
        }
        let mut used = false;
        for vbd in store.refs("VDI", vdi, "VBDs")? {
            let vm = store.text("VBD", &vbd, "VM")?;
            used |= store.flag("VBD", &vbd, "currently_attached")? && !pool.is_control_domain(&vm);
        }
        Ok((store.text("VDI", vdi, "uuid")?, used))
    })?;
    if used {
        return Err(Failure::new("VDI_IN_USE", [vdi, "export"]));
    }
    let id = id.parse().map_err(|_| Failure::internal("the VDI's uuid is none"))?;
    Ok(Attached { view: pool.shelf.view(vdi)?, id, _plug: pool.plug(vdi, true)? })
}

/// A raw disk, as it is or as a VHD.
pub(super) async fn disk(transfer: &Transfer<'_>, connection: Connection) -> Result<Option<Connection>, HttpError> {
    let pool = transfer.pool;
    let task = match transfer.task("Exporting raw disk image") {
        Ok(task) => task,
        Err(failure) => return refuse(transfer, connection, 500, &failure.to_string()).await,
    };
    let format = match transfer.request.parameter("format").as_deref() {
        None | Some("raw") => Format::Raw,
        Some("vhd") => Format::Vhd,
        Some(other) => {
            task.settle(Err(Failure::internal(format!("unknown format {other}"))));
            return refuse(transfer, connection, 404, "unknown format").await;
        }
    };
    match open(transfer, &format).await {
        Ok((stream, length, attached)) => {
            let content = if matches!(format, Format::Vhd) { "application/vhd" } else { "application/octet-stream" };
            run(pool, connection, task, "HTTP/1.1", content, length, Pieces::Disk(stream)).await?;
            drop(attached);
            Ok(None)
        }
        Err(failure) => transfer.fail(connection, task, failure).await,
    }
}

async fn open(transfer: &Transfer<'_>, format: &Format) -> Result<(ByteStream, u64, Vec<Attached>), Failure> {
    let pool = transfer.pool;
    let vdi = transfer.object("VDI", "vdi")?.ok_or_else(|| Failure::handle_invalid("VDI", ""))?;
    let top = attach(pool, &vdi)?;
    let base = transfer.object("VDI", "base")?;
    if matches!(format, Format::Raw) {
        let (stream, length) = (disks::export_raw(&top.view), top.view.size());
        return Ok((stream, length, vec![top]));
    }
    let base = match base {
        Some(_) if pool.faults.hits(&Fault::FullInsteadOfDelta) => None,
        Some(base) => Some(attach(pool, &base)?),
        None => None,
    };
    let parent = base.as_ref().map(|base| (&base.view, base.id));
    let export = disks::export_vhd(&top.view, top.id, parent, Shape::default()).await?;
    Ok((export.stream, export.length, std::iter::once(top).chain(base).collect()))
}

/// A whole machine as XVA.
pub(super) async fn machine(transfer: &Transfer<'_>, connection: Connection) -> Result<Option<Connection>, HttpError> {
    let task = match transfer.task("Export of a VM") {
        Ok(task) => task,
        Err(failure) => return refuse(transfer, connection, 500, &failure.to_string()).await,
    };
    let compression = match transfer.request.parameter("use_compression").as_deref() {
        Some("true" | "gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        _ => Compression::None,
    };
    match prepare(transfer) {
        Ok((manifest, disks)) => {
            let expected = disks.iter().map(|(_, disk)| allocated(disk)).sum();
            let pieces = archive(manifest, disks, compression);
            run(transfer.pool, connection, task, "HTTP/1.0", "application/octet-stream", expected, Pieces::Archive(pieces))
                .await?;
            Ok(None)
        }
        Err(failure) => transfer.fail(connection, task, failure).await,
    }
}

/// Bytes of data that a disk puts into an archive, near enough for a progress bar.
fn allocated(disk: &Attached) -> u64 {
    disk.view.allocated().map_or(0, |ranges| ranges.iter().map(|range| range.end - range.start).sum())
}

fn prepare(transfer: &Transfer<'_>) -> Result<(String, Vec<(String, Attached)>), Failure> {
    let pool = transfer.pool;
    let vm = match transfer.object("VM", "ref")? {
        Some(vm) => Some(vm),
        None => transfer.object("VM", "uuid")?,
    };
    let vm = vm.ok_or_else(|| Failure::handle_invalid("VM", ""))?;
    let manifest = pool.db.with(|store| {
        crate::rpc::check_not_blocked(store, &vm, "export")?;
        crate::rpc::check_power(store, &vm, &["Halted", "Suspended"])?;
        ova::write(store, &vm, &pool.identity.name)
    })?;
    let mut disks = Vec::new();
    for (name, vdi) in manifest.disks {
        disks.push((name, attach(pool, &vdi)?));
    }
    Ok((manifest.xml, disks))
}

/// Makes the archive on a thread of its own, held back by whoever sends it.
fn archive(xml: String, disks: Vec<(String, Attached)>, compression: Compression) -> mpsc::Receiver<Result<Bytes, Failure>> {
    let (sender, pieces) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        // An error here is a client that has gone; there is nobody to tell.
        let _ = write_archive(xml, disks, compression, &sender).or_else(|failure| sender.blocking_send(Err(failure)));
    });
    pieces
}

fn write_archive(
    xml: String,
    disks: Vec<(String, Attached)>,
    compression: Compression,
    sender: &mpsc::Sender<Result<Bytes, Failure>>,
) -> Result<(), Failure> {
    let internal = |error: &dyn std::fmt::Display| Failure::internal(error.to_string());
    let mut compressor = Compressor::new(compression).map_err(|error| internal(&error))?;
    let mut send = |piece: Bytes| {
        let ready = compressor.push(piece).map_err(|error| internal(&error))?;
        if ready.is_empty() {
            Ok(())
        } else {
            sender.blocking_send(Ok(ready)).map_err(|_| Failure::internal("the client has gone"))
        }
    };
    let mut writer = xva::Writer::new();
    for piece in writer.ova_xml(xml.into()).map_err(|error| internal(&error))? {
        send(piece)?;
    }
    for (name, disk) in disks {
        writer.begin_disk(&name, disk.view.size()).map_err(|error| internal(&error))?;
        let ranges = disk.view.allocated()?;
        let mut ahead = ranges.iter().peekable();
        while let Some((position, length)) = writer.next_chunk() {
            let end = position + length as u64;
            while ahead.next_if(|range| range.end <= position).is_some() {}
            if ahead.peek().is_none_or(|range| range.start >= end) && writer.skip_chunk() {
                continue;
            }
            let mut data = vec![0; length];
            disk.view.read_at(position, &mut data)?;
            for piece in writer.chunk(data.into()).map_err(|error| internal(&error))? {
                send(piece)?;
            }
        }
    }
    send(writer.finish().map_err(|error| internal(&error))?)?;
    let rest = compressor.finish().map_err(|error| internal(&error))?;
    if !rest.is_empty() {
        sender.blocking_send(Ok(rest)).map_err(|_| Failure::internal("the client has gone"))?;
    }
    Ok(())
}

/// The records as XML, for a backup of the pool's metadata.
pub(super) async fn database(transfer: &Transfer<'_>, connection: Connection) -> Result<Option<Connection>, HttpError> {
    let task = match transfer.task("Dumping the database") {
        Ok(task) => task,
        Err(failure) => return refuse(transfer, connection, 500, &failure.to_string()).await,
    };
    let records = transfer.pool.db.with(|store| store.to_json());
    let mut xml = String::from("<?xml version=\"1.0\"?><database>");
    crate::xmlrpc::write_value(&mut xml, "", &records);
    xml.push_str("</database>");
    let (sender, pieces) = mpsc::channel(1);
    let length = xml.len() as u64;
    tokio::spawn(async move { sender.send(Ok(xml.into())).await });
    run(transfer.pool, connection, task, "HTTP/1.1", "text/xml", length, Pieces::Archive(pieces)).await?;
    Ok(None)
}

/// Where the bytes come from.
enum Pieces {
    Disk(ByteStream),
    Archive(mpsc::Receiver<Result<Bytes, Failure>>),
}

impl Pieces {
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        match self {
            Self::Disk(stream) => Some(stream.next().await?.map_err(Failure::from)),
            Self::Archive(pieces) => pieces.recv().await,
        }
    }
}

/// Sends everything. The 200 goes first, whatever becomes of the rest.
async fn run(
    pool: &Arc<Pool>,
    mut connection: Connection,
    task: Task,
    version: &str,
    content: &str,
    expected: u64,
    mut pieces: Pieces,
) -> Result<(), HttpError> {
    if let Err(error) = connection.begin(version, &[("content-type", content), ("task-id", task.reference())]).await {
        task.settle(Err(Failure::internal("the client closed the connection")));
        return Err(error.into());
    }
    let mangled = pool.faults.hits(&Fault::HttpInBody);
    let mut outlet = Outlet::new(pool, connection, task, expected);
    let outcome = async {
        if mangled {
            outlet.send(Bytes::from_static(b"HTTP/1.1 500 Internal Error\r\ncontent-length: 0\r\n\r\n")).await?;
            return Err(Stop::Failed(Failure::new("VDI_NOT_AVAILABLE", [""; 0])));
        }
        while let Some(piece) = pieces.next().await {
            outlet.send(piece.map_err(Stop::Failed)?).await?;
        }
        Ok(())
    }
    .await;
    drop(pieces);
    outlet.end(pool, outcome).await;
    Ok(())
}
