//! The one table of actions. Keys, footer, `?`, `:` and the documentation come from it; what is refused when comes
//! from [`super::act::availability`], which answers with a reason instead of hiding the action.

use super::effect::Danger;

/// Where keys have a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Context {
    /// Everywhere, unless text is being typed.
    Global,
    /// Every list.
    List,
    /// The screen of that name.
    Proxies,
    /// The screen of that name.
    Remotes,
    /// The screen of that name.
    Jobs,
    /// The screen of that name.
    Transfers,
    /// The VMs that have restore points.
    Backups,
    /// The restore points of one VM.
    Points,
    /// The screen of that name.
    Runs,
    /// One run.
    Run,
    /// The history of messages.
    Messages,
    /// The licences that the proxies hold.
    Licenses,
    /// An examination of one proxy.
    Doctor,
    /// A form.
    Form,
    /// The last page of a form.
    Review,
}

/// Names of the contexts in key maps.
pub const CONTEXTS: [(Context, &str); 15] = [
    (Context::Global, "global"),
    (Context::List, "list"),
    (Context::Proxies, "proxies"),
    (Context::Remotes, "remotes"),
    (Context::Jobs, "jobs"),
    (Context::Transfers, "transfers"),
    (Context::Backups, "backups"),
    (Context::Points, "points"),
    (Context::Runs, "runs"),
    (Context::Run, "run"),
    (Context::Messages, "messages"),
    (Context::Licenses, "licenses"),
    (Context::Doctor, "doctor"),
    (Context::Form, "form"),
    (Context::Review, "review"),
];

/// What the table knows of an action.
#[derive(Debug, Clone, Copy)]
pub struct ActionInfo {
    /// The action.
    pub action: Action,
    /// Its word in key maps and in the palette.
    pub id: &'static str,
    /// For the footer.
    pub title: &'static str,
    /// One line for help.
    pub doc: &'static str,
    /// Where it makes sense.
    pub contexts: &'static [Context],
    /// What is asked before it happens; follows from the request it sends.
    pub danger: Danger,
    /// Whether it leads to a request that writes.
    pub writes: bool,
    /// Whether the footer shows it, in this order.
    pub footer: bool,
}

macro_rules! actions {
    ($( $name:ident = $id:literal, $title:literal, $doc:literal, [$($context:ident)+] $(, $flag:ident)*; )+) => {
        /// Everything a person can do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $( #[doc = $doc] $name, )+ }

        /// The table, in the order of help.
        pub const ACTIONS: &[ActionInfo] = &[ $( {
            #[allow(unused_mut)]
            let mut info = ActionInfo {
                action: Action::$name, id: $id, title: $title, doc: $doc, contexts: &[$(Context::$context),+],
                danger: Danger::None, writes: false, footer: false,
            };
            $( actions!(@flag info $flag); )*
            info
        }, )+ ];
    };
    (@flag $info:ident footer) => { $info.footer = true; };
    (@flag $info:ident writes) => { $info.writes = true; };
    (@flag $info:ident asks) => { $info.writes = true; $info.danger = Danger::Ask; };
    (@flag $info:ident types) => { $info.writes = true; $info.danger = Danger::TypeName; };
}

actions! {
    JobNew = "job.new", "new", "Create a backup job", [Jobs], footer, writes;
    JobEdit = "job.edit", "edit", "Change the selected job", [Jobs], footer, writes;
    JobRun = "job.run", "run now", "Start the selected job now", [Jobs], footer, writes;
    JobToggle = "job.toggle", "on/off", "Enable or disable the schedule of the selected job", [Jobs], footer, writes;
    JobRemove = "job.remove", "remove", "Remove the selected job; its restore points stay", [Jobs], footer, asks;
    RemoteNew = "remote.new", "new", "Add a remote (backup repository) to a proxy", [Remotes], footer, writes;
    RemoteTest = "remote.test", "test", "Write 10 MiB to the selected remote, read it back, compare", [Remotes], footer, writes;
    RemoteRemove = "remote.remove", "remove", "Forget the selected remote; its files stay", [Remotes], footer, asks;
    Restore = "backup.restore", "restore", "Restore the selected restore point into a new VM", [Backups Points], footer, writes;
    Verify = "backup.verify", "verify", "Read the selected restore point back and check it", [Backups Points], footer, writes;
    PointRemove = "backup.remove", "remove", "Remove the selected restore point for good", [Points], footer, types;
    RunCancel = "run.cancel", "cancel", "Ask the selected run to stop; what was restorable stays restorable", [Transfers Runs Run], footer, asks;
    ProxyAdopt = "proxy.adopt", "add here", "Add the selected deployed proxy to this console", [Proxies], footer, writes;
    ProxyDeploy = "proxy.deploy", "deploy", "Deploy a new proxy into a pool", [Proxies], footer, writes;
    ProxyDoctor = "proxy.doctor", "doctor", "Check everything the selected proxy depends on", [Proxies], footer;
    ProxyUpgrade = "proxy.upgrade", "upgrade", "Upgrade the selected proxy to a signed bundle; it goes back by itself if that fails", [Proxies], footer, writes;
    ProxySettings = "proxy.settings", "settings", "Change name, site or HTTP proxy of the selected proxy", [Proxies], footer, writes;
    ProxyReconfigure = "proxy.reconfigure", "address", "Change address, processors or memory of the selected deployed proxy", [Proxies], footer, asks;
    ProxyRedeploy = "proxy.redeploy", "redeploy", "Put a new VM in the place of the selected deployed proxy; jobs, remotes and identity stay", [Proxies], footer, asks;
    ProxyDrain = "proxy.drain", "drain on/off", "Hold new runs of the selected proxy back, or let them start again", [Proxies], asks;
    TokenRotate = "token.rotate", "new token", "Make a new token for the selected proxy and keep it in the configuration", [Proxies], asks;
    CertificateRenew = "certificate.renew", "new certificate", "Have the selected proxy make a new certificate and pin it", [Proxies], asks;
    ProxyForget = "proxy.forget", "forget", "Forget the selected deployed proxy; its VM stays", [Proxies], asks;
    ProxyDestroy = "proxy.destroy", "destroy", "Destroy the selected deployed proxy with its VM", [Proxies], footer, types;
    DoctorAgain = "doctor.again", "again", "Check everything again", [Doctor], footer;
    SupportSave = "support.save", "support file", "Write a redacted text about the proxy for whoever is asked for help", [Proxies Doctor], footer;
    LicenseImport = "license.import", "import", "Give a licence to a proxy to keep", [Licenses], footer, writes;
    LicenseBind = "license.bind", "bind", "Bind the selected licence to a proxy", [Licenses], footer, writes;
    LicenseUnbind = "license.unbind", "free", "Free the selected licence of a proxy", [Licenses], footer, asks;
    LicenseRemove = "license.remove", "remove", "Forget the selected licence; it must serve no proxy", [Licenses], footer, asks;
    PoolAdd = "pool.add", "add pool", "Connect a pool to the selected proxy", [Proxies], footer, writes;
    Reconnect = "proxy.reconnect", "reconnect", "Try the selected proxy again now", [Proxies], footer;
    Open = "open", "open", "Open what is selected", [List], footer;
    Filter = "filter", "filter", "Show only what matches; !word excludes", [List], footer;
    Sort = "sort", "sort", "Sort by the next column", [List], footer;
    SortReverse = "sort.reverse", "reverse", "Turn the order round", [List];
    Up = "up", "up", "One row up", [List Review];
    Down = "down", "down", "One row down", [List Review];
    PageUp = "page-up", "page up", "One page up", [List Review];
    PageDown = "page-down", "page down", "One page down", [List Review];
    Top = "top", "top", "First row", [List Review];
    Bottom = "bottom", "bottom", "Last row", [List Review];
    Copy = "copy", "copy", "Copy the details of what is selected to your own clipboard", [Global];
    Refresh = "refresh", "refresh", "Ask the proxies again for what is on the screen", [Global];
    Back = "back", "back", "One step back: close, clear the filter, leave the screen", [Global];
    GoProxies = "go.proxies", "Proxies", "All daemons: state, version, load, last error", [Global];
    GoRemotes = "go.remotes", "Remotes", "Backup repositories and their free space", [Global];
    GoJobs = "go.jobs", "Jobs", "What is backed up, where to, when", [Global];
    GoTransfers = "go.transfers", "Transfers", "What is moving now", [Global];
    GoBackups = "go.backups", "Backups", "Restore points by VM", [Global];
    GoRuns = "go.runs", "Runs", "What happened", [Global];
    GoMessages = "go.messages", "Messages", "Everything the console has told you", [Global];
    GoLicenses = "go.licenses", "Licences", "The licences that the proxies hold, and which proxy runs under which", [Global];
    NextTab = "tab.next", "next tab", "The screen to the right", [Global];
    PreviousTab = "tab.previous", "previous tab", "The screen to the left", [Global];
    Help = "help", "help", "What can be done here; type to search, Enter does it", [Global Form Review], footer;
    Palette = "palette", "palette", "Every action by its name", [Global];
    Repaint = "repaint", "repaint", "Paint the whole screen again", [Global];
    Suspend = "suspend", "suspend", "Back to the shell; fg returns", [Global];
    Quit = "quit", "quit", "Leave the console; runs go on", [Global], footer;
    FormSave = "form.save", "save", "Check and save", [Form], footer, writes;
    FormSaveRun = "form.save-run", "save and run", "Check, save and start the job now", [Form], footer, writes;
    FormNext = "form.next", "next", "To the next field", [Form], footer;
    FormPrevious = "form.previous", "previous field", "To the previous field", [Form];
    FormReset = "form.reset", "start over", "Forget what was typed; asks first", [Form], footer;
    FormClose = "form.close", "close", "Close; what was typed is kept as a draft", [Form], footer;
    FormQuit = "form.quit", "quit", "Leave the console; asks when something was typed", [Form Review];
    ReviewAccept = "review.accept", "do it", "Do what the page says", [Review], footer, writes;
    ReviewBack = "review.back", "back to the form", "Back to the form; nothing has been touched", [Review], footer;
}

impl Action {
    /// Its line of the table.
    pub fn info(self) -> &'static ActionInfo {
        // The table is written in the order of the enumeration, by the same macro.
        &ACTIONS[self as usize]
    }

    /// The action of a word.
    pub fn named(id: &str) -> Option<Self> {
        ACTIONS.iter().find(|info| info.id == id).map(|info| info.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_words_are_unique() {
        for info in ACTIONS {
            assert_eq!(info.action.info().id, info.id);
            assert_eq!(Action::named(info.id), Some(info.action), "{} twice", info.id);
        }
    }
}
