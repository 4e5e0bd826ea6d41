//! From the image to a proxy that is ready for jobs, and from a former proxy to the one that takes its place.

use std::sync::Arc;
use std::time::Duration;

use api::{
    Imported, Intent, JobList, LicenseBind, LicenseBindParams, LicenseImport, LicenseImportParams, NoParams, PoolAdd,
    PoolAddParams, PoolList, ProxyState, RemoteList, StateExport, StateImport, TaskKind, TaskResult,
};
use tokio::time::sleep;
use xapi::{Record, Ref, Vm};

use super::check::{self, Ground};
use super::image::Image;
use super::machine::{self, DEPLOY, OBSOLETE, PROXY, Shape};
use super::proxy::{Ending, Proxy};
use super::settle::{self, Undo, Waking};
use super::steps::{
    ADDRESS, CHECK, CONFIGURE, DAEMON, DRAIN, HAND_OVER, INTRODUCE, REGISTER, RETIRE, START, SWITCH_OFF, TAKE_OVER, UPLOAD,
    with_undone,
};
use super::{check_id, guest};
use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::meter::Meter;
use crate::plan::{DeployPlan, ProxyAccess, ReplacePlan};
use crate::pool::Pool;
use crate::restore::metered;

/// A proxy that is replaced.
struct Former<'a> {
    plan: &'a ReplacePlan,
    /// None when it is gone.
    vm: Option<Record<Vm>>,
    access: ProxyAccess,
    proxy: Proxy,
    /// Whether it answered when it was asked last.
    answers: bool,
}

impl<'a> Former<'a> {
    fn new(plan: &'a DeployPlan, replaces: &'a ReplacePlan) -> Result<Self, Error> {
        let access = ProxyAccess {
            vm: replaces.vm.clone(),
            name: plan.name.clone(),
            url: replaces.url.clone(),
            token: plan.token.clone(),
            fingerprint: replaces.fingerprint.clone(),
        };
        let proxy = Proxy::of(&access, plan.times.call)?;
        Ok(Self { plan: replaces, vm: None, access, proxy, answers: false })
    }

    /// Looks at its VM, and asks whether it answers; hours may lie between two looks.
    async fn look(&mut self, pool: &Pool, plan: &DeployPlan) -> Result<(), Error> {
        self.vm = machine::of_proxy(pool, &self.plan.vm, &plan.proxy).await?;
        let is_there = match &self.vm {
            Some(vm) => guest::is_at(pool, vm, &self.plan.url).await?,
            None => false,
        };
        self.answers = self.proxy.answers(is_there).await?;
        if self.answers && self.vm.as_ref().is_none_or(|vm| vm.power_state != "Running") {
            let (name, url) = (&plan.name, &self.plan.url);
            let message =
                format!("proxy {name} answers at {url}, but its VM {} does not run on pool {}", self.plan.vm, pool.name);
            let next = "it runs elsewhere, and a second one must not run beside it: forget it here, it goes on working; or switch it \
                        off to have it made anew from the copy of its state";
            return Err(Error::Refused { code: "PROXY_VM_ELSEWHERE", message, next: Some(next) });
        }
        if !self.answers && self.plan.state.is_none() {
            return Err(Error::Refused {
                code: "PROXY_STATE_UNKNOWN",
                message: format!("proxy {} does not answer, and there is no copy of its jobs and remotes", plan.name),
                next: Some("bring it up for the redeployment, or forget it and deploy a new one"),
            });
        }
        Ok(())
    }

    /// The uuid of its VM, if that is on and has to be on again when the replacement fails.
    fn running(&self) -> Option<&str> {
        self.vm.as_ref().filter(|vm| vm.power_state != "Halted").map(|vm| vm.uuid.as_str())
    }
}

/// How many of everything a proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    pools: usize,
    remotes: usize,
    jobs: usize,
}

/// What is known of the new proxy, step by step.
struct Flow<'a> {
    context: &'a Arc<Context>,
    plan: &'a DeployPlan,
    pool: Arc<Pool>,
    ground: Ground,
    image: Image,
    former: Option<Former<'a>>,
    /// The one intent, once announced, and what it says.
    intent: Option<u32>,
    uuid: Option<String>,
    replaces: Option<String>,
    /// The new proxy once it has become the former one; it holds its runs back until it is certain to stay.
    successor: Option<Proxy>,
}

/// Deploys a proxy; a failure undoes everything.
pub(crate) async fn deploy(context: &Arc<Context>, plan: &DeployPlan) -> Result<(), Error> {
    let mut flow = CHECK.run(context, &plan.times, async |task| Flow::checked(context, plan, task).await).await?;
    if let Err(error) = flow.build().await {
        return Err(flow.undo(error).await);
    }
    // A commit whose acknowledgement is missing may stand in the journal all the same: nothing is undone here, and the
    // clean-up, which reads the journal, knows.
    flow.commit().await?;
    flow.finish().await;
    Ok(())
}

impl<'a> Flow<'a> {
    async fn checked(context: &'a Arc<Context>, plan: &'a DeployPlan, task: &Task) -> Result<Self, Error> {
        let pool = context.pool(&plan.pool).await?;
        let former = match &plan.replaces {
            Some(replaces) => {
                let mut former = Former::new(plan, replaces)?;
                former.look(&pool, plan).await?;
                match &former.vm {
                    Some(vm) => check::only_system_disk(&pool, vm).await?,
                    None => task.warn(format!("the former VM {} is gone", replaces.vm)),
                }
                Some(former)
            }
            None => None,
        };
        let ground = check::ground(&pool, plan, former.as_ref().and_then(|former| former.vm.as_ref())).await?;
        let image = Image::find(&plan.image).await?;
        Ok(Self { context, plan, pool, ground, image, former, intent: None, uuid: None, replaces: None, successor: None })
    }

    async fn build(&mut self) -> Result<(), Error> {
        let (context, plan, times) = (self.context, self.plan, &self.plan.times);
        let vm = self.uploaded().await?;
        let (pool, ground) = (&self.pool, &self.ground);
        let former_vm = self.former.as_ref().and_then(|former| former.vm.as_ref());
        let vm = CONFIGURE
            .run(context, times, async |task| {
                let mac = match former_vm {
                    Some(old) => machine::mac_on(pool, old, &ground.network).await?.unwrap_or_default(),
                    None => String::new(),
                };
                let (vcpus, memory, disk) = (plan.vcpus, plan.memory, plan.disk);
                let shape = Shape { name: &plan.name, vcpus, memory, disk, network: &ground.network, mac: &mac };
                machine::configure(pool, &vm, &shape, task).await?;
                // By its new name from here on, in whatever is told of it.
                pool.get::<Vm>(&vm.reference).await
            })
            .await?;
        HAND_OVER.run(context, times, async |_| guest::hand_over(pool, &vm, plan).await).await?;
        let state = self.take_state().await?;
        let pool = &self.pool;
        START.run(context, times, async |_| machine::start(pool, &vm).await).await?;
        let address = async |task: &Task| guest::address(pool, &vm, &plan.address, task, times.address).await;
        let url = guest::url(ADDRESS.run(context, times, address).await?, plan.port);
        let (mut proxy, mut fingerprint) = DAEMON.run(context, times, async |task| self.connected(&vm, &url, task).await).await?;
        match state {
            Some((state, counts)) => {
                let taking = async |task: &Task| self.take_over(&proxy, &url, &state, counts, task).await;
                (proxy, fingerprint) = TAKE_OVER.run(context, times, taking).await?;
            }
            None => INTRODUCE.run(context, times, async |_| self.introduce(&proxy).await).await?,
        }
        let result =
            TaskResult { vm: Some(vm.uuid.clone()), url: Some(url), fingerprint: Some(fingerprint), ..TaskResult::default() };
        let mark_old = self.former.as_ref().and_then(|former| former.vm.as_ref());
        REGISTER
            .run_into(
                context,
                times,
                async |_| match mark_old {
                    Some(old) => {
                        // Once more, for it may have been a while.
                        check::only_system_disk(&self.pool, old).await?;
                        machine::set_mark(&self.pool, old, OBSOLETE, Some(&context.run)).await
                    }
                    None => Ok(()),
                },
                |()| result,
            )
            .await?;
        // A cancel from here on comes too late: the result stands in the journal, and nothing may undo it.
        self.successor = self.former.is_some().then_some(proxy);
        Ok(())
    }

    fn intended(&self) -> Intent {
        let answered = self.replaces.is_some() && self.former.as_ref().is_some_and(|former| former.answers);
        Intent::DeployedVm { pool: self.pool.id.clone(), uuid: self.uuid.clone(), replaces: self.replaces.clone(), answered }
    }

    async fn refine(&self) -> Result<(), Error> {
        match self.intent {
            Some(intent) => Ok(self.context.recorder.refine(intent, self.intended()).await?),
            None => Ok(()),
        }
    }

    /// Uploads the image; the VM is marked from its first moment.
    async fn uploaded(&mut self) -> Result<Record<Vm>, Error> {
        let (context, times) = (self.context, &self.plan.times);
        UPLOAD
            .run_into(
                context,
                times,
                async |task| {
                    task.phase(api::Phase::Verifying);
                    self.image.verify(|bytes| task.meter().add_read(bytes)).await?;
                    context.check()?;
                    self.intent = Some(context.recorder.intend(self.intended()).await?);
                    task.phase(api::Phase::Transferring);
                    let reference = self.import(task).await?;
                    let vm = self.pool.get::<Vm>(&reference).await?;
                    self.uuid = Some(vm.uuid.clone());
                    self.refine().await?;
                    for (key, value) in [(DEPLOY, &context.run), (PROXY, &self.plan.proxy)] {
                        if vm.other_config.get(key) != Some(value) {
                            machine::set_mark(&self.pool, &vm, key, Some(value)).await?;
                        }
                    }
                    Ok(vm)
                },
                |vm| TaskResult { vm: Some(vm.uuid.clone()), ..TaskResult::default() },
            )
            .await
    }

    async fn import(&self, task: &Task) -> Result<Ref, Error> {
        let members = [(DEPLOY, self.context.run.as_str()), (PROXY, self.plan.proxy.as_str())];
        let reading = self.image.marked(&members).await?;
        task.meter().add_total(reading.length);
        let body = metered(reading.pieces, Arc::clone(task.meter()), "read of the image".into(), &self.pool.name);
        let label = settle::import_label(&self.context.run);
        let import = self.pool.client.import_vm(&self.ground.sr, reading.length, body, &label);
        let seconds = self.plan.times.stall;
        let imported = tokio::select! {
            imported = import => imported.map_err(self.pool.failed(format!("import the image of {}", self.plan.name))),
            () = stalled(task.meter(), seconds) => {
                Err(Error::Late { what: format!("pool {} took no byte of the image", self.pool.name), seconds })
            }
        };
        match reading.wrong.get() {
            Some(found) => Err(self.image.mismatch(found)),
            None => imported,
        }
    }

    /// Takes the state of the former proxy, and switches it off.
    async fn take_state(&mut self) -> Result<Option<(ProxyState, Option<Counts>)>, Error> {
        if self.former.is_none() {
            return Ok(None);
        }
        let (context, times) = (self.context, &self.plan.times);
        let taken = DRAIN.run(context, times, async |task| self.drained(task).await).await?;
        let old = self.former.as_ref().and_then(|former| former.vm.as_ref());
        let off = async |task: &Task| match old {
            Some(vm) if vm.power_state != "Halted" => machine::switch_off(&self.pool, vm, times.start, task).await,
            _ => Ok(()),
        };
        SWITCH_OFF.run(context, times, off).await?;
        Ok(taken)
    }

    /// The state of the former proxy: from itself, once nothing runs on it any more, or as it was copied last.
    async fn drained(&mut self, task: &Task) -> Result<Option<(ProxyState, Option<Counts>)>, Error> {
        let (plan, pool) = (self.plan, Arc::clone(&self.pool));
        let Some(former) = &mut self.former else { return Ok(None) };
        former.look(&pool, plan).await?;
        // From here on an undo has something to wake.
        self.replaces = former.running().map(str::to_owned);
        if self.replaces.is_some() {
            self.refine().await?;
        }
        let Some(former) = &self.former else { return Ok(None) };
        if former.answers {
            former.proxy.drained(Ending::All, task, plan.times.drain).await?;
            let counts = counts(&former.proxy).await?;
            let state = former.proxy.call::<StateExport>("export its state", &NoParams {}).await?;
            return Ok(Some((state, Some(counts))));
        }
        task.warn(format!("proxy {} does not answer: its state as last copied is taken", plan.name));
        Ok(former.plan.state.clone().map(|kept| (kept, None)))
    }

    /// Connects to the new daemon, its certificate pinned as reported through the hypervisor.
    async fn connected(&self, vm: &Record<Vm>, url: &str, task: &Task) -> Result<(Proxy, String), Error> {
        let (plan, times) = (self.plan, &self.plan.times);
        let fingerprint = guest::fingerprint(&self.pool, vm, task, times.daemon).await?.to_string();
        let proxy = Proxy::new(&plan.name, url, &plan.token, &fingerprint, times.call)?;
        let status = proxy.wait_for(task, times.daemon).await?;
        check_id(&status, &plan.proxy, &plan.name)?;
        guest::wipe(&self.pool, vm, task).await?;
        Ok((proxy, fingerprint))
    }

    /// Makes the new proxy the former one, but for its runs, which it holds back. Gives it as it is called from then on, and its
    /// certificate, which is the former one's.
    async fn take_over(
        &self,
        new: &Proxy,
        url: &str,
        state: &ProxyState,
        counts: Option<Counts>,
        task: &Task,
    ) -> Result<(Proxy, String), Error> {
        let (plan, times) = (self.plan, &self.plan.times);
        // A copied state need not be of one that held its runs back.
        new.drain(true).await?;
        let imported = new.call::<StateImport>("take the former proxy's state over", state).await?;
        if let Some(wanted) = counts {
            check_counts(&imported, wanted, &plan.name)?;
        }
        let pinned = plan.replaces.as_ref().map(|replaces| replaces.fingerprint.as_str()).unwrap_or_default();
        let same = imported.fingerprint.parse::<tls::Fingerprint>().ok() == pinned.parse().ok();
        if !same {
            let message = format!("proxy {} shows {} after taking over, and not {pinned}", plan.name, imported.fingerprint);
            return Err(Error::refused("PROXY_CERTIFICATE_CHANGED", message));
        }
        let proxy = Proxy::new(&plan.name, url, &plan.token, pinned, times.call)?;
        let status = proxy.wait_for(task, times.call).await?;
        check_id(&status, &plan.proxy, &plan.name)?;
        self.license(&proxy).await?;
        Ok((proxy, imported.fingerprint))
    }

    /// Gives the new proxy the pool, and its licence.
    async fn introduce(&self, proxy: &Proxy) -> Result<(), Error> {
        let id = &self.plan.pool;
        let access = self
            .context
            .pool_access(id)
            .ok_or_else(|| Error::refused("POOL_NOT_FOUND", format!("pool {id} is not among those the run may use")))?;
        let params = PoolAddParams {
            name: Some(access.name.clone()),
            url: access.url.clone(),
            username: access.username.clone(),
            password: access.password.expose().to_owned(),
            fingerprint: Some(access.fingerprint.clone()),
        };
        proxy.call::<PoolAdd>(&format!("connect pool {}", access.name), &params).await?;
        self.license(proxy).await
    }

    async fn license(&self, proxy: &Proxy) -> Result<(), Error> {
        let Some(text) = &self.plan.license else { return Ok(()) };
        let params = LicenseImportParams { text: text.expose().to_owned() };
        let license = proxy.call::<LicenseImport>("take its licence", &params).await?;
        let params = LicenseBindParams { id: license.id, proxy: None };
        proxy.call::<LicenseBind>("bind its licence", &params).await.map(drop)
    }

    /// From here on the new proxy stays, whatever happens. Of one that took another's place something is left to do, even when the
    /// former VM is gone.
    async fn commit(&self) -> Result<(), Error> {
        let Some(intent) = self.intent else { return Ok(()) };
        match &self.former {
            Some(former) => {
                let what = Intent::ObsoleteVm { pool: self.pool.id.clone(), uuid: former.plan.vm.clone(), jobs: Vec::new() };
                self.context.recorder.refine(intent, what).await?;
            }
            None => self.context.recorder.commit(intent).await?,
        }
        Ok(())
    }

    /// Lets the new proxy start its runs, destroys the VM that was replaced, and takes the mark off the new one. What fails here
    /// does not undo the deployment: it is warned of, and the clean-up after the run goes on with it.
    async fn finish(&self) {
        let (context, times) = (self.context, &self.plan.times);
        if let Some(former) = &self.former {
            let retired = RETIRE
                .run_to_end(context, times, async |task| {
                    let released = match &self.successor {
                        Some(new) => new.drain(false).await.map(drop),
                        None => Ok(()),
                    };
                    settle::obsolete(&self.pool, &context.run, &former.plan.vm, &[], task).await?;
                    released
                })
                .await;
            match (retired, self.intent) {
                (Ok(()), Some(intent)) => context.recorder.settle(intent),
                (Err(error), _) => context.warn(None, format!("the new proxy stays, but: {}", error.sentence())),
                (Ok(()), None) => {}
            }
        }
        let unmarked = async {
            match &self.uuid {
                Some(uuid) => match machine::find(&self.pool, uuid).await? {
                    Some(vm) => machine::set_mark(&self.pool, &vm, DEPLOY, None).await,
                    None => Ok(()),
                },
                None => Ok(()),
            }
        };
        if let Err(error) = unmarked.await {
            context.warn(None, format!("the VM keeps the mark of its deployment, which does no harm: {}", error.sentence()));
        }
    }

    /// Undoes everything. Gives the error with what has become of it.
    async fn undo(&self, error: Error) -> Error {
        let Some(intent) = self.intent else { return error };
        let (context, times) = (self.context, &self.plan.times);
        let task = context.recorder.task(None, TaskKind::Step, "undo", self.uuid.clone());
        let old = self.former.as_ref().zip(self.replaces.as_deref()).map(|(former, uuid)| Waking {
            uuid,
            access: Some(&former.access),
            answered: former.answers,
            times,
        });
        let undo = Undo { run: &context.run, uuid: self.uuid.as_deref(), old };
        let undone = settle::in_time(times, undo.deployed(&self.pool, &task)).await;
        task.settle(&undone);
        match undone {
            Ok(()) => {
                context.recorder.settle(intent);
                with_undone(error, " and what was made is removed again")
            }
            Err(_) => with_undone(error, " and what was made is not all removed yet: the next clean-up tries again"),
        }
    }
}

async fn counts(proxy: &Proxy) -> Result<Counts, Error> {
    let pools = proxy.call::<PoolList>("list its pools", &NoParams {}).await?.len();
    let remotes = proxy.call::<RemoteList>("list its remotes", &NoParams {}).await?.len();
    let jobs = proxy.call::<JobList>("list its jobs", &NoParams {}).await?.len();
    Ok(Counts { pools, remotes, jobs })
}

fn check_counts(imported: &Imported, wanted: Counts, name: &str) -> Result<(), Error> {
    let found = Counts { pools: imported.pools as usize, remotes: imported.remotes as usize, jobs: imported.jobs as usize };
    if found == wanted {
        return Ok(());
    }
    let words = |counts: Counts| format!("{} pools, {} remotes and {} jobs", counts.pools, counts.remotes, counts.jobs);
    let message = format!("proxy {name} has {}, and took over {}", words(wanted), words(found));
    Err(Error::refused("PROXY_STATE_PARTIAL", message))
}

/// Ends when no byte has gone for so long.
async fn stalled(meter: &Arc<Meter>, seconds: u64) {
    let mut last = None;
    loop {
        let now = meter.totals().0;
        if last == Some(now) {
            return;
        }
        last = Some(now);
        sleep(Duration::from_secs(seconds.max(1))).await;
    }
}
