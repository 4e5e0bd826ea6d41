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
use super::proxy::Proxy;
use super::settle::{self, Undo};
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
    answers: bool,
}

impl Former<'_> {
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
            Some(replaces) => Some(former(&pool, plan, replaces, task).await?),
            None => None,
        };
        let ground = check::ground(&pool, plan, former.as_ref().and_then(|former| former.vm.as_ref())).await?;
        let image = Image::find(&plan.image).await?;
        Ok(Self { context, plan, pool, ground, image, former, intent: None, uuid: None, replaces: None })
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
        let (proxy, mut fingerprint) = DAEMON.run(context, times, async |task| self.connected(&vm, &url, task).await).await?;
        match state {
            Some((state, counts)) => {
                fingerprint =
                    TAKE_OVER.run(context, times, async |task| self.take_over(&proxy, &url, &state, counts, task).await).await?;
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
                    Some(old) => machine::set_mark(&self.pool, old, OBSOLETE, Some(&context.run)).await,
                    None => Ok(()),
                },
                |()| result,
            )
            .await?;
        context.check()
    }

    fn intended(&self) -> Intent {
        Intent::DeployedVm { pool: self.pool.id.clone(), uuid: self.uuid.clone(), replaces: self.replaces.clone() }
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
        let Some(former) = &self.former else { return Ok(None) };
        // From here on an undo has something to wake.
        self.replaces = former.running().map(str::to_owned);
        if self.replaces.is_some() {
            self.refine().await?;
        }
        let (context, times) = (self.context, &self.plan.times);
        let taken = DRAIN
            .run(context, times, async |task| {
                if former.answers {
                    former.proxy.drained(task, times.drain).await?;
                    let counts = counts(&former.proxy).await?;
                    let state = former.proxy.call::<StateExport>("export its state", &NoParams {}).await?;
                    return Ok((state, Some(counts)));
                }
                let kept = former.plan.state.clone().ok_or_else(|| no_state(&self.plan.name))?;
                task.warn(format!("proxy {} does not answer: its state as last copied is taken", self.plan.name));
                Ok((kept, None))
            })
            .await?;
        let off = async |task: &Task| match &former.vm {
            Some(vm) if vm.power_state != "Halted" => machine::switch_off(&self.pool, vm, times.start, task).await,
            _ => Ok(()),
        };
        SWITCH_OFF.run(context, times, off).await?;
        Ok(Some(taken))
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

    /// Makes the new proxy the former one. Gives its certificate from then on, which is the former one's.
    async fn take_over(
        &self,
        new: &Proxy,
        url: &str,
        state: &ProxyState,
        counts: Option<Counts>,
        task: &Task,
    ) -> Result<String, Error> {
        let (plan, times) = (self.plan, &self.plan.times);
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
        // It has become one that was held back.
        if status.draining {
            proxy.drain(false).await?;
        }
        self.license(&proxy).await?;
        Ok(imported.fingerprint)
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

    /// From here on the new proxy stays, whatever happens.
    async fn commit(&self) -> Result<(), Error> {
        let Some(intent) = self.intent else { return Ok(()) };
        match self.former.as_ref().and_then(|former| former.vm.as_ref()) {
            Some(old) => {
                let what = Intent::ObsoleteVm { pool: self.pool.id.clone(), uuid: old.uuid.clone() };
                self.context.recorder.refine(intent, what).await?;
            }
            None => self.context.recorder.commit(intent).await?,
        }
        Ok(())
    }

    /// Destroys the VM that was replaced, and takes the mark off the new one. What fails here does not make the new proxy
    /// worse: it is warned of, and the clean-up after the run goes on with it.
    async fn finish(&self) {
        let (context, times) = (self.context, &self.plan.times);
        if let Some(old) = self.former.as_ref().and_then(|former| former.vm.as_ref()) {
            let retired = RETIRE
                .run_to_end(context, times, async |task| settle::obsolete(&self.pool, &context.run, &old.uuid, task).await)
                .await;
            match (retired, self.intent) {
                (Ok(()), Some(intent)) => context.recorder.settle(intent),
                (Err(error), _) => context.warn(None, format!("the new proxy works, but: {}", error.sentence())),
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
        let access = self.former.as_ref().filter(|former| former.answers).map(|former| &former.access);
        let undo = Undo { run: &context.run, uuid: self.uuid.as_deref(), old: self.replaces.as_deref(), access, times };
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

async fn former<'a>(pool: &Pool, plan: &'a DeployPlan, replaces: &'a ReplacePlan, task: &Task) -> Result<Former<'a>, Error> {
    let vm = machine::of_proxy(pool, &replaces.vm, &plan.proxy).await?;
    let access = ProxyAccess {
        vm: replaces.vm.clone(),
        name: plan.name.clone(),
        url: replaces.url.clone(),
        token: plan.token.clone(),
        fingerprint: replaces.fingerprint.clone(),
    };
    let proxy = Proxy::of(&access, plan.times.call)?;
    let runs = vm.as_ref().is_some_and(|vm| vm.power_state == "Running");
    let answers = proxy.answers(runs).await?;
    if !answers && replaces.state.is_none() {
        return Err(no_state(&plan.name));
    }
    if vm.is_none() {
        task.warn(format!("the former VM {} is gone", replaces.vm));
    }
    Ok(Former { plan: replaces, vm, access, proxy, answers })
}

fn no_state(name: &str) -> Error {
    Error::Refused {
        code: "PROXY_STATE_UNKNOWN",
        message: format!("proxy {name} does not answer, and there is no copy of its jobs and remotes"),
        next: Some("bring it up for the redeployment, or forget it and deploy a new one"),
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
