//! The forms that change a deployed proxy: redeployed, or at another address or with other resources.

/// A deployed proxy made anew from an image.
pub mod redeploy {
    use api::deploy::{Answers, field};
    use api::{Deployed, ImageSource, RedeployParams};

    use crate::core::effect::Request;
    use crate::core::forms::deploy::{answer_fault, made, storage};
    use crate::core::forms::{Choice, Form, FormField, FormKind};
    use crate::core::state::State;
    use crate::core::text::shell;

    /// A form that has a deployed proxy made anew by its deployer.
    pub fn open(deployer: &str, deployed: &Deployed) -> Form {
        let mut fields: Vec<FormField> = ["image", "image-sha256", "sr"].into_iter().filter_map(field).map(made).collect();
        fields.push(super::by(deployer));
        let title = format!("Redeploy {}", deployed.name);
        Form::new(FormKind::Redeploy(Box::new(deployed.clone())), title, fields)
    }

    pub(in super::super) fn sync(form: &mut Form, state: &State, deployed: &Deployed) {
        let Some(proxy) = state.proxy(form.proxy()) else { return };
        let pool = proxy.options.items.first().and_then(|offered| offered.pools.iter().find(|pool| pool.id == deployed.pool));
        let mut options = vec![Choice::new("", "as before", "beside the disk it has now")];
        options.extend(pool.iter().flat_map(|pool| &pool.srs).map(|sr| storage(sr, deployed.spec.disk)));
        form.offer("sr", options);
        form.set_default("image", deployed.spec.image.url.clone());
        form.check_touched(state);
    }

    pub(in super::super) fn fault(form: &Form, id: &str) -> Option<String> {
        if let Some(why) = form.option(id).and_then(|option| option.why_not.as_ref()) {
            return Some(why.clone());
        }
        if id == "image" && form.typed("image-sha256").is_some() && form.typed("image").is_none() {
            return Some("a checksum alone is not enough: give the image too".into());
        }
        let mut answers = Answers::default();
        for (id, value) in [("name", "x"), ("pool", "x"), ("image", form.value("image"))] {
            answers.set(id, value);
        }
        answers.set("image-sha256", form.value("image-sha256"));
        answer_fault(&answers, id)
    }

    pub(in super::super) fn request(form: &Form, deployed: &Deployed) -> Request {
        let image = form.typed("image").map(|url| ImageSource { url, sha256: form.typed("image-sha256") });
        let sr = Some(form.value("sr")).filter(|sr| !sr.is_empty()).map(str::to_owned);
        Request::Redeploy(Box::new(RedeployParams { id: deployed.id.clone(), image, sr, discard_local: false }))
    }

    pub(in super::super) fn command(form: &Form, deployed: &Deployed) -> String {
        let mut line = format!("backhaul proxy redeploy {} --proxy {}", shell(&deployed.name), shell(form.proxy()));
        for id in ["image", "image-sha256"] {
            if let Some(value) = form.typed(id) {
                line.push_str(&format!(" --{id} {}", shell(&api::deploy::redact_url(&value))));
            }
        }
        if let Some(sr) = form.option("sr").filter(|option| !option.id.is_empty()) {
            line.push_str(&format!(" --sr {}", shell(&sr.label)));
        }
        line
    }
}

/// Another address, other resources.
pub mod reconfigure {
    use api::deploy::{Answers, field};
    use api::{AddressSpec, DeploySpec, Deployed, ReconfigureParams, format_bytes};

    use crate::core::effect::Request;
    use crate::core::forms::deploy::{answer_fault, answers, made, show_asked};
    use crate::core::forms::{Form, FormField, FormKind};
    use crate::core::text::shell;

    const FIELDS: [&str; 7] = ["address", "ip", "netmask", "gateway", "dns", "vcpus", "memory"];

    /// A form that has a deployed proxy changed by its deployer.
    pub fn open(deployer: &str, deployed: &Deployed) -> Form {
        let spec = &deployed.spec;
        let holds = |id: &str| match (id, &spec.address) {
            ("ip", AddressSpec::Static { network, .. }) => network.to_string(),
            ("gateway", AddressSpec::Static { gateway: Some(gateway), .. }) => gateway.to_string(),
            ("dns", AddressSpec::Static { dns, .. }) => dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ("vcpus", _) => spec.vcpus.to_string(),
            ("memory", _) => format_bytes(spec.memory),
            _ => String::new(),
        };
        let made = |id: &str| field(id).map(|info| made(info).holding(holds(id)));
        let mut fields: Vec<FormField> = FIELDS.into_iter().filter_map(made).collect();
        fields.push(super::by(deployer));
        let title = format!("Address and resources of {}", deployed.name);
        let mut form = Form::new(FormKind::Reconfigure(Box::new(deployed.clone())), title, fields);
        let address = if spec.address == AddressSpec::Dhcp { "dhcp" } else { "static" };
        form.suggest("address", Some(address.to_owned()));
        form
    }

    pub(in super::super) fn sync(form: &mut Form) {
        show_asked(form);
    }

    /// The whole deployment as it would be with the changes.
    fn changed(form: &Form, deployed: &Deployed) -> Answers {
        let mut answers = answers(form);
        for (id, value) in [("name", deployed.name.as_str()), ("pool", &deployed.pool), ("image", "as it is")] {
            answers.set(id, value);
        }
        answers
    }

    pub(in super::super) fn fault(form: &Form, deployed: &Deployed, id: &str) -> Option<String> {
        if let Some(message) = answer_fault(&changed(form, deployed), id) {
            return Some(message);
        }
        let same =
            id == "address" && DeploySpec::from_answers(&changed(form, deployed)).is_ok() && request(form, deployed).is_none();
        same.then(|| "nothing is changed yet: address, processors or memory".into())
    }

    /// The changes; none where there are none.
    pub(in super::super) fn request(form: &Form, deployed: &Deployed) -> Option<Request> {
        let (spec, before) = (DeploySpec::from_answers(&changed(form, deployed)).ok()?, &deployed.spec);
        // Memory is shown rounded: as it stands, it is the one of before.
        let memory = (form.value("memory") != format_bytes(before.memory) && spec.memory != before.memory).then_some(spec.memory);
        let params = ReconfigureParams {
            id: deployed.id.clone(),
            address: (spec.address != before.address).then_some(spec.address),
            vcpus: (spec.vcpus != before.vcpus).then_some(spec.vcpus),
            memory,
        };
        let any = params.address.is_some() || params.vcpus.is_some() || params.memory.is_some();
        any.then(|| Request::Reconfigure(Box::new(params)))
    }

    pub(in super::super) fn command(form: &Form, deployed: &Deployed) -> String {
        let mut line = format!("backhaul proxy reconfigure {} --proxy {}", shell(&deployed.name), shell(form.proxy()));
        if let Some(Request::Reconfigure(params)) = request(form, deployed) {
            match params.address {
                Some(AddressSpec::Dhcp) => line.push_str(" --dhcp"),
                Some(AddressSpec::Static { .. }) => {
                    for id in ["ip", "netmask", "gateway", "dns"] {
                        if let Some(value) = form.typed(id) {
                            line.push_str(&format!(" --{id} {}", shell(&value)));
                        }
                    }
                }
                None => {}
            }
            if let Some(vcpus) = params.vcpus {
                line.push_str(&format!(" --vcpus {vcpus}"));
            }
            if let Some(memory) = params.memory {
                line.push_str(&format!(" --memory-mib {}", memory >> 20));
            }
        }
        line
    }
}

/// The field that names who does it; there is no choice.
fn by(deployer: &str) -> super::FormField {
    fixed("proxy", "Proxy", "The one that deployed it and does this too", deployer)
}

/// A field with the only thing it can be.
pub(super) fn fixed(id: &'static str, label: &'static str, help: &'static str, only: &str) -> super::FormField {
    super::FormField::choice(id, label, help, vec![super::Choice::new(only, only, "")], Some(only))
}
