//! Views of the configured interfaces and of the pinned generations.

use glb_host::{
    generations,
    xdp_link::{self, Mode},
};
use serde::{Deserialize, Serialize};

use super::Observer;

/// A configured interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// Whether there is an interface of this name.
    #[serde(default)]
    pub exists: bool,
    /// Whether one of this director's generations runs on it.
    pub attached: bool,
    /// `native` or `generic`, if a program is attached.
    pub mode: Option<String>,
    /// The generation that runs on it.
    pub generation: Option<u64>,
    /// Why this director does not forward on it, if so.
    pub problem: Option<String>,
}

/// A generation that is pinned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationView {
    /// Its number.
    pub number: u64,
    /// Whether it is the active one.
    pub in_force: bool,
    /// When it was activated, in seconds since the epoch, if it is active.
    pub since: Option<f64>,
    /// How many seconds ago it was activated, if it is active.
    #[serde(default)]
    pub age_seconds: Option<f64>,
    /// The interfaces that it is attached to.
    pub interfaces: Vec<String>,
    /// Digest of everything that must be equal on all directors of a fleet, if it is active.
    pub membership_digest: Option<String>,
    /// Digest of the backends' states and health, if it is active.
    pub order_digest: Option<String>,
}

impl Observer {
    /// Views of the configured interfaces.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceView> {
        self.interfaces.iter().map(|name| self.interface(name)).collect()
    }

    fn interface(&self, name: &str) -> InterfaceView {
        let found = xdp_link::attached(name);
        let (mode, mut problem) = match &found {
            Ok(Some((Mode::Native, _))) => (Some("native"), None),
            Ok(Some((Mode::Generic, _))) => (Some("generic"), None),
            Ok(None) => (None, Some("no XDP program is attached".to_owned())),
            Err(error) => (None, Some(error.to_string())),
        };
        let generation = generations::current_program(&[name.to_owned()], &self.pins);
        let generation = match generation {
            Ok(found) => found.map(|(number, _program)| number),
            Err(error) => {
                problem.get_or_insert_with(|| error.to_string());
                None
            }
        };
        let attached = mode.is_some() && generation.is_some();
        if !attached {
            problem.get_or_insert_with(|| "another XDP program is attached".to_owned());
        }
        InterfaceView {
            name: name.to_owned(),
            exists: xdp_link::interface_index(name).is_ok(),
            attached,
            mode: mode.map(str::to_owned),
            generation,
            problem,
        }
    }

    /// Views of the pinned generations, in ascending order.
    #[must_use]
    pub fn generations(&self) -> Vec<GenerationView> {
        let snapshot = self.snapshot();
        let interfaces = self.interfaces();
        let numbers = generations::numbers(&self.pins).into_iter();
        numbers
            .map(|number| {
                let in_force =
                    snapshot.in_force.as_ref().filter(|running| running.generation == number);
                let digest = in_force.map(|running| running.digest);
                GenerationView {
                    number,
                    in_force: in_force.is_some(),
                    since: in_force.map(|running| running.since.epoch()),
                    age_seconds: in_force.map(|running| running.since.age()),
                    interfaces: interfaces
                        .iter()
                        .filter(|interface| interface.generation == Some(number))
                        .map(|interface| interface.name.clone())
                        .collect(),
                    membership_digest: digest.map(|digest| glb_table::hex(&digest.membership)),
                    order_digest: digest.map(|digest| glb_table::hex(&digest.order)),
                }
            })
            .collect()
    }
}
