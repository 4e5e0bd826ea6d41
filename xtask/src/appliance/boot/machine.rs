//! A machine under QEMU: one processor's work, no acceleration, a network of its own whose two ports are forwarded.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::Bench;
use super::console::Console;
use super::volume::Volume;
use crate::run::Program;

/// What a machine is made of. It can be started again and again.
pub struct Machine {
    /// Its disk, raw.
    pub disk: PathBuf,
    /// Its address in its network.
    address: &'static str,
    /// Volumes beside the disk, writable or not.
    volumes: Vec<Volume>,
    /// On this machine.
    pub https: u16,
    /// On this machine.
    pub ssh: u16,
    boots: u32,
}

/// A machine that runs; it ends when this is dropped.
pub struct Running {
    child: Child,
    /// Its serial console.
    pub console: Console,
    control: PathBuf,
}

impl Machine {
    /// A machine with a copy of the image on a disk of `size` bytes, which will have this address.
    pub fn new(bench: &Bench, size: u64, address: &'static str) -> Result<Self> {
        let disk = bench.dir.join("disk.raw");
        Program::new("cp").arg("--sparse=always").arg(&bench.image).arg(&disk).run()?;
        let file = std::fs::OpenOptions::new().write(true).open(&disk)?;
        ensure!(file.metadata()?.len() <= size, "the image is larger than the disk of this case");
        file.set_len(size).with_context(|| format!("cannot grow {}", disk.display()))?;
        Ok(Self { disk, address, volumes: Vec::new(), https: free_port()?, ssh: free_port()?, boots: 0 })
    }

    /// Attaches a volume.
    pub fn attach(&mut self, volume: Volume) {
        self.volumes.push(volume);
    }

    /// The volume labelled BACKHAUL that is part of the disk.
    pub fn own_volume(&self) -> Volume {
        Volume::part(&self.disk, crate::disk::VOLUME_START)
    }

    /// Starts it.
    pub async fn start(&mut self, bench: &Bench) -> Result<Running> {
        self.boots += 1;
        let file = |extension: &str| bench.dir.join(format!("boot-{}.{extension}", self.boots));
        // Paths of sockets are short.
        let sockets = std::env::temp_dir().join(format!("backhaul-boot-{}-{}", std::process::id(), self.https));
        std::fs::create_dir_all(&sockets).with_context(|| format!("cannot make {}", sockets.display()))?;
        let (serial, control) = (sockets.join("serial"), sockets.join("control"));
        for socket in [&serial, &control] {
            let _ = std::fs::remove_file(socket);
        }
        let forward = |port: u16, to: u16| format!("hostfwd=tcp:127.0.0.1:{port}-{}:{to}", self.address);
        let mut program = bench
            .tools
            .program("bin/qemu-system-x86_64")
            .arg("-L")
            .arg(bench.tools.file("usr/share/qemu"))
            .arg("-L")
            .arg(bench.tools.file("usr/share/seabios"))
            .args(["-machine", "pc", "-cpu", "max", "-smp", "2", "-m", "2048", "-display", "none", "-nodefaults"])
            .args(["-vga", "std", "-accel", &bench.accel])
            .args(["-drive", &drive(&self.disk, "if=virtio")])
            .args(["-nic", &format!("user,model=virtio-net-pci,{},{}", forward(self.https, 443), forward(self.ssh, 22))])
            .args(["-serial", &format!("unix:{},server=on,wait=on", serial.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        for volume in &self.volumes {
            let options = if volume.writable { "if=virtio" } else { "if=ide,media=cdrom,readonly=on" };
            program = program.args(["-drive", &drive(&volume.file, options)]);
        }
        let log = std::fs::File::create(file("qemu.log"))?;
        let mut command = Command::from(program.into_command());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start QEMU")?;
        // It waits for us before it begins, so that no line of its console is lost.
        let console = Console::connect(&serial, &mut child, &file("console.log"), bench.limit(30)).await;
        let console = console.with_context(|| format!("QEMU does not start: {}", file("qemu.log").display()))?;
        Ok(Running { child, console, control })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(sockets) = self.control.parent() {
            let _ = std::fs::remove_dir_all(sockets);
        }
    }
}

impl Running {
    /// Presses its power button, and waits until it is off.
    pub async fn power_off(mut self, bench: &Bench) -> Result<()> {
        let press = async {
            let mut stream = BufReader::new(UnixStream::connect(&self.control).await?);
            let mut line = String::new();
            for order in ["qmp_capabilities", "system_powerdown"] {
                line.clear();
                stream.read_line(&mut line).await?;
                stream.write_all(format!("{{\"execute\":\"{order}\"}}\n").as_bytes()).await?;
            }
            // The answer to the last one.
            stream.read_line(&mut line).await
        };
        press.await.context("cannot press the power button")?;
        let ended = tokio::time::timeout(bench.limit(180), self.child.wait()).await;
        let status = ended.context("the appliance does not shut down when its power button is pressed")??;
        ensure!(status.success(), "QEMU ended with {status}");
        bench.seen("shut down by its power button");
        Ok(())
    }
}

fn drive(file: &Path, options: &str) -> String {
    // A comma in an option's value is written twice.
    format!("file={},format=raw,{options}", file.display().to_string().replace(',', ",,"))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}
