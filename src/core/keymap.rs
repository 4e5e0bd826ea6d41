//! Which key means what where. The default map is a TOML file compiled in; the user's is laid over it.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use toml::Spanned;

use super::action::{Action, CONTEXTS, Context};
use super::key::Key;

/// The map every console starts with.
pub const DEFAULT: &str = include_str!("../tui/keymap-default.toml");

/// Keys by context.
#[derive(Debug, Clone, Default)]
pub struct Keymap {
    by_key: HashMap<(Context, Key), Action>,
    by_action: HashMap<(Context, Action), Vec<Key>>,
}

type File = BTreeMap<String, BTreeMap<String, Spanned<Keys>>>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Keys {
    One(String),
    Many(Vec<String>),
}

fn line(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

impl Keymap {
    /// The default map with the user's file (name for messages, text) over it, and what is wrong with the file:
    /// faulty lines are left out, the rest counts.
    pub fn load(user: Option<(&str, &str)>) -> (Self, Vec<String>) {
        let mut map = Self::default();
        let mut warnings = Vec::new();
        map.overlay("keymap-default.toml", DEFAULT, &mut warnings);
        if let Some((name, text)) = user {
            map.overlay(name, text, &mut warnings);
        }
        (map, warnings)
    }

    fn overlay(&mut self, name: &str, text: &str, warnings: &mut Vec<String>) {
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let at = error.span().map_or(1, |span| line(text, span.start));
                warnings.push(format!("{name}:{at}: {}; the default keys are used", error.message()));
                return;
            }
        };
        for (section, bindings) in &file {
            let Some((context, _)) = CONTEXTS.iter().find(|(_, word)| word == section) else {
                let at = bindings.values().next().map_or(1, |keys| line(text, keys.span().start));
                let known: Vec<&str> = CONTEXTS.iter().map(|(_, word)| *word).collect();
                warnings.push(format!("{name}:{at}: no context is called \"{section}\"; there are {}", known.join(", ")));
                continue;
            };
            let mut bound: HashMap<Key, &str> = HashMap::new();
            for (id, keys) in bindings {
                let at = line(text, keys.span().start);
                let Some(action) = Action::named(id) else {
                    warnings.push(format!("{name}:{at}: no action is called \"{id}\""));
                    continue;
                };
                let words: Vec<&str> = match keys.get_ref() {
                    Keys::One(word) => vec![word],
                    Keys::Many(words) => words.iter().map(String::as_str).collect(),
                };
                self.unbind(*context, action);
                for word in words {
                    let key = match word.parse::<Key>() {
                        Ok(key) => key,
                        Err(error) => {
                            warnings.push(format!("{name}:{at}: {error}"));
                            continue;
                        }
                    };
                    if let Some(other) = bound.insert(key, id) {
                        warnings.push(format!("{name}:{at}: \"{key}\" already means \"{other}\" in [{section}]"));
                        continue;
                    }
                    self.bind(*context, key, action);
                }
            }
        }
    }

    fn unbind(&mut self, context: Context, action: Action) {
        for key in self.by_action.remove(&(context, action)).unwrap_or_default() {
            if self.by_key.get(&(context, key)) == Some(&action) {
                self.by_key.remove(&(context, key));
            }
        }
    }

    fn bind(&mut self, context: Context, key: Key, action: Action) {
        if let Some(former) = self.by_key.insert((context, key), action)
            && let Some(keys) = self.by_action.get_mut(&(context, former))
        {
            keys.retain(|other| *other != key);
        }
        self.by_action.entry((context, action)).or_default().push(key);
    }

    /// What a key means; the first context that knows it decides.
    pub fn action(&self, contexts: &[Context], key: Key) -> Option<Action> {
        contexts.iter().find_map(|context| self.by_key.get(&(*context, key)).copied())
    }

    /// The key to show for an action: the first that still means it in these contexts.
    pub fn key(&self, contexts: &[Context], action: Action) -> Option<Key> {
        self.keys(contexts, action).first().copied()
    }

    /// All keys of an action in these contexts.
    pub fn keys(&self, contexts: &[Context], action: Action) -> Vec<Key> {
        let bound = contexts.iter().flat_map(|context| self.by_action.get(&(*context, action)).into_iter().flatten());
        let mut keys = Vec::new();
        for key in bound.copied().filter(|key| self.action(contexts, *key) == Some(action)) {
            // The same key in several contexts is one key.
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::super::action::ACTIONS;
    use super::*;

    #[test]
    fn the_default_map_has_no_fault_and_reaches_every_action() {
        let (map, warnings) = Keymap::load(None);
        assert_eq!(warnings, Vec::<String>::new());
        for info in ACTIONS {
            assert!(
                info.contexts.iter().any(|context| map.key(&[*context], info.action).is_some()),
                "{} has no key in any of its contexts",
                info.id
            );
        }
    }

    #[test]
    fn a_key_of_several_contexts_is_listed_once() {
        let (map, _) = Keymap::load(None);
        let keys = map.keys(Action::RunCancel.info().contexts, Action::RunCancel);
        assert_eq!(keys, [Key::char('c')]);
    }

    #[test]
    fn every_action_can_be_bound_anew_and_unbound() {
        for info in ACTIONS {
            let context = CONTEXTS.iter().find(|(context, _)| *context == info.contexts[0]).unwrap();
            let text = format!("[{}]\n\"{}\" = \"f9\"", context.1, info.id);
            let (map, warnings) = Keymap::load(Some(("mine", &text)));
            assert!(warnings.is_empty(), "{warnings:?}");
            assert_eq!(map.keys(&[context.0], info.action), ["f9".parse().unwrap()], "{}", info.id);
            let (map, _) = Keymap::load(Some(("mine", &format!("[{}]\n\"{}\" = []", context.1, info.id))));
            assert!(map.keys(&[context.0], info.action).is_empty());
        }
    }

    #[test]
    fn faults_name_file_and_line_and_hurt_nothing() {
        let text = "[jobs]\n\"job.run\" = [\"x\", \"hyper-x\"]\n\"job.fly\" = \"f\"\n[kitchen]\n\"up\" = \"u\"\n";
        let (map, warnings) = Keymap::load(Some(("mine.toml", text)));
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings.iter().any(|w| w.starts_with("mine.toml:2:") && w.contains("hyper-x")));
        assert!(warnings.iter().any(|w| w.starts_with("mine.toml:3:") && w.contains("job.fly")));
        assert!(warnings.iter().any(|w| w.starts_with("mine.toml:5:") && w.contains("kitchen")));
        assert_eq!(map.action(&[Context::Jobs], Key::char('x')), Some(Action::JobRun));
        let (_, warnings) = Keymap::load(Some(("mine.toml", "[jobs\n")));
        assert!(warnings[0].starts_with("mine.toml:1:"), "{warnings:?}");
    }
}
