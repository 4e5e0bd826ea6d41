//! From a reviewed deployment to the plan of its run.

use api::deploy::minimum;
use api::{DeploySpec, DeployedState, FieldFault, Login, StepInfo};
use engine::plan::{DeployPlan, DeployTimes, ImagePlan, LoginPlan, ProxyAccess, ReplacePlan, Secret};

use super::Deployments;
use super::review::Choice;
use crate::fault::Fault;
use crate::store::{DeploymentRecord, DeploymentSecrets};

/// The steps of a deployment with their limits.
pub(super) fn steps() -> Vec<StepInfo> {
    engine::deploy_steps(&DeployTimes::default(), false)
}

impl Deployments {
    pub(super) async fn deploy_plan(&self, id: &str, spec: &DeploySpec, choice: &Choice) -> Result<DeployPlan, Fault> {
        let license = match &choice.license {
            Some(license) => Some(Secret::new(self.licenses.text(license).await?)),
            None => None,
        };
        Ok(DeployPlan {
            proxy: id.to_owned(),
            name: spec.name.clone(),
            site: self.site(spec),
            pool: choice.pool.clone(),
            sr: choice.sr.uuid.clone(),
            network: choice.network.uuid.clone(),
            address: spec.address.clone(),
            port: spec.port,
            vcpus: spec.vcpus,
            memory: spec.memory,
            disk: spec.disk,
            image: ImagePlan {
                url: Secret::new(&spec.image.url),
                sha256: spec.image.sha256.clone(),
                trusted: self.settings.upgrade_keys.clone(),
                http_proxy: spec.http_proxy.as_ref().map(Secret::new),
            },
            token: Secret::new(crate::maintenance::random("the proxy's token")?),
            http_proxy: spec.http_proxy.as_ref().map(Secret::new),
            login: login(spec.login.as_ref())?,
            issuer_key: keys(&self.licenses.issuer_keys()),
            upgrade_key: keys(&self.settings.upgrade_keys),
            license,
            replaces: None,
            times: DeployTimes::default(),
        })
    }

    /// The plan by which a proxy is made anew: it keeps its id, its token and its login, and takes its former state over.
    pub(super) async fn redeploy_plan(
        &self,
        record: &DeploymentRecord,
        spec: &DeploySpec,
        choice: &Choice,
    ) -> Result<DeployPlan, Fault> {
        let (Some(vm), Some(url), Some(fingerprint)) = (&record.vm, &record.url, &record.fingerprint) else {
            return Err(super::never_ready(record));
        };
        let state = self.store.deployment_state(&record.id).await?;
        let mut plan = self.deploy_plan(&record.id, spec, choice).await?;
        plan.token = record.secrets.token.clone();
        plan.login.clone_from(&record.secrets.login);
        plan.replaces = Some(ReplacePlan { vm: vm.clone(), url: url.clone(), fingerprint: fingerprint.clone(), state });
        Ok(plan)
    }

    fn site(&self, spec: &DeploySpec) -> String {
        let pool = self.pools.find(&spec.pool).map_or_else(|_| spec.pool.clone(), |(_, name)| name);
        spec.site.clone().filter(|site| !site.trim().is_empty()).unwrap_or(pool)
    }

    /// What speaks against another address or other resources of a proxy that exists.
    pub(super) async fn look_at_change(&self, spec: &DeploySpec, record: &DeploymentRecord) -> Result<Vec<FieldFault>, Fault> {
        let looked = self.look(spec, Some(record)).await?;
        let more = spec.memory.saturating_sub(record.spec.memory);
        let faults = looked.review.faults.into_iter().filter(|fault| match fault.field.as_str() {
            "ip" | "netmask" | "gateway" | "dns" | "address" | "vcpus" | "pool" => true,
            // Its own memory is free again while it restarts.
            "memory" => spec.memory < minimum::MEMORY || more > 0,
            // Disk and image stay as they are.
            _ => false,
        });
        Ok(faults.collect())
    }
}

impl DeploymentRecord {
    /// How its proxy is reached, once it has been ready.
    pub(crate) fn access(&self) -> Option<ProxyAccess> {
        Some(ProxyAccess {
            vm: self.vm.clone()?,
            name: self.name.clone(),
            url: self.url.clone()?,
            token: self.secrets.token.clone(),
            fingerprint: self.fingerprint.clone()?,
        })
    }
}

/// The registry row of a deployment that is about to begin.
pub(super) fn record(id: &str, run: &str, spec: &DeploySpec, choice: &Choice, plan: &DeployPlan) -> DeploymentRecord {
    let mut shown = spec.redacted();
    shown.pool.clone_from(&choice.pool);
    shown.sr = Some(choice.sr.uuid.clone());
    shown.network = Some(choice.network.uuid.clone());
    shown.site = Some(plan.site.clone());
    DeploymentRecord {
        id: id.to_owned(),
        name: spec.name.clone(),
        pool: choice.pool.clone(),
        state: DeployedState::Deploying,
        run: Some(run.to_owned()),
        vm: None,
        url: None,
        fingerprint: None,
        spec: shown,
        wanted: None,
        secrets: DeploymentSecrets {
            token: plan.token.clone(),
            http_proxy: plan.http_proxy.clone(),
            login: plan.login.clone(),
            image: plan.image.url.clone(),
            wanted_image: None,
        },
        copied_at: None,
        ready_at: None,
    }
}

/// All keys at once, as a guest is told them: after a change of keys, what the former ones signed still counts.
fn keys(keys: &[String]) -> Option<String> {
    (!keys.is_empty()).then(|| keys.join(" "))
}

/// A password leaves this machine only as crypt(5) hashes it.
fn login(login: Option<&Login>) -> Result<Option<LoginPlan>, Fault> {
    use sha_crypt::{PasswordHasher, ShaCrypt};
    Ok(match login {
        None => None,
        Some(Login::Key { key }) => Some(LoginPlan::Key(key.trim().to_owned())),
        Some(Login::Password { password }) => {
            let failed = |error: String| {
                Fault::Failed(api::ErrorReport::new("PASSWORD", format!("the technician's password cannot be hashed: {error}")))
            };
            // Sixteen characters once encoded: of a longer salt crypt(3) reads so many and writes no more, so that no
            // password would match.
            let mut salt = [0; 12];
            getrandom::fill(&mut salt).map_err(|error| failed(error.to_string()))?;
            let hashed = ShaCrypt::SHA512.hash_password_with_salt(password.as_bytes(), &salt);
            let hashed = hashed.map_err(|error| failed(error.to_string()))?;
            Some(LoginPlan::PasswordHash(Secret::new(hashed.to_string())))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_all_keys() {
        assert_eq!(keys(&[]), None);
        assert_eq!(keys(&["a".into()]).unwrap(), "a");
        assert_eq!(keys(&["a".into(), "b".into()]).unwrap(), "a b");
    }

    #[test]
    fn a_password_is_hashed_as_login_programs_read_it() {
        let given = Login::Password { password: "correct horse".into() };
        let Some(LoginPlan::PasswordHash(hash)) = login(Some(&given)).unwrap() else { panic!("no hash") };
        assert!(hash.expose().starts_with("$6$"), "{}", hash.expose());
        let salt = hash.expose().rsplit('$').nth(1).unwrap();
        assert_eq!(salt.len(), 16, "crypt(3) reads 16 characters of a salt: {}", hash.expose());
        use sha_crypt::PasswordVerifier;
        sha_crypt::ShaCrypt::SHA512.verify_password(b"correct horse", hash.expose()).unwrap();
    }
}
