//! What a provider says of itself: signed, sequenced, short-lived and bounded.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, Digest, ModelId, NodeId, RecordId};
use crate::model::{Modality, NAME_BYTES_MAX};
use crate::price::Price;
use crate::signed::Signable;
use crate::time::Time;

/// Bounds an advert on the wire.
pub const ADVERT_BYTES_MAX: usize = 16 * 1024;

/// Bounds the models in one advert, so that it fits its bytes.
pub const MODELS_MAX: usize = 32;

/// Bounds the devices in one advert.
pub const DEVICES_MAX: usize = 16;

/// Bounds a region: ISO 3166 codes have at most six bytes, and people may agree on finer ones.
pub const REGION_BYTES_MAX: usize = 16;

/// What a provider serves, at which price, on which hardware, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// Node that serves; the advert is signed with its key.
    pub node: NodeId,
    /// What its owner calls it; nobody vouches for it.
    pub name: String,
    /// Account that is paid.
    pub account: AccountId,
    /// Rises with every advert of a node, and is at least the Unix milliseconds of its clock; a lower one is ignored.
    pub sequence: u64,
    /// Community or company, by its own word.
    pub class: ProviderClass,
    /// Where the provider says it is, as an ISO 3166 code such as `DE`, `EU` or `DE-BY`; empty when it does not say.
    pub region: String,
    /// Hardware.
    pub devices: Vec<Device>,
    /// Models served.
    pub models: Vec<ModelOffer>,
    /// What the provider does with what it earns.
    pub incentive: Incentive,
    /// Software version.
    pub version: String,
    /// When the advert stops counting.
    pub valid_to: Time,
}

/// What kind of provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderClass {
    /// People.
    Community,
    /// A company, which nobody vouches for yet.
    Company,
}

/// A piece of hardware that does inference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Kind, as the engine names it: `cpu` or `cuda`.
    pub kind: String,
    /// Name, as the system gives it.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Engine that drives it.
    pub backend: String,
}

/// One model at one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    /// Model.
    pub model: ModelId,
    /// Name for people.
    pub name: String,
    /// Class of model.
    pub modality: Modality,
    /// Licence under which it is served.
    pub licence: RecordId,
    /// Price table.
    pub price: Price,
    /// Longest prompt and answer together, in tokens.
    pub context_tokens: u32,
    /// Jobs at once.
    pub slots: u16,
    /// Of these, taken now.
    pub busy: u16,
    /// Measured generation rate of one job, in tokens per 1,000 seconds.
    pub decode_milli: u64,
    /// Measured prompt rate, in tokens per 1,000 seconds.
    pub prefill_milli: u64,
    /// Number format of the weights.
    pub quantisation: String,
    /// Digest of the weights.
    pub weights: Digest,
}

/// What a provider does with what it earns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Incentive {
    /// Earns credits that buy priority and cannot be withdrawn.
    Exchange,
    /// Earns credits that can be withdrawn.
    Rewards,
}

impl Signable for Advert {
    const TAG: &'static str = "advert";
    const BYTES_MAX: usize = ADVERT_BYTES_MAX;

    fn check_bounds(&self) -> Result<(), &'static str> {
        let short = |text: &String| text.len() <= NAME_BYTES_MAX;
        let devices = self.devices.len() <= DEVICES_MAX
            && self.devices.iter().all(|d| short(&d.kind) && short(&d.name) && short(&d.backend));
        let models = self.models.len() <= MODELS_MAX
            && self.models.iter().all(|m| short(&m.name) && short(&m.quantisation) && m.busy <= m.slots);
        match (devices, models, short(&self.name) && short(&self.version)) {
            (false, ..) => Err("devices"),
            (_, false, _) => Err("models"),
            (.., false) => Err("name or version"),
            (true, true, true) if !self.region.is_empty() && !is_region(&self.region) => Err("region"),
            (true, true, true) => Ok(()),
        }
    }
}

/// Says whether a text can be a region: two letters, and what is finer after hyphens.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let mut parts = text.split('-');
    let country = parts.next().unwrap_or_default();
    let is_country = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_finer = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() <= REGION_BYTES_MAX && is_country && parts.all(is_finer)
}

impl Advert {
    /// Returns what the provider says of `model`.
    #[must_use]
    pub fn offer(&self, model: ModelId) -> Option<&ModelOffer> {
        self.models.iter().find(|offer| offer.model == model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_a_code_and_nothing_else() {
        for region in ["de", "EU", "DE-BY", "us-east-1"] {
            assert!(is_region(region), "{region}");
        }
        for other in
            ["", "d", "deu", "de-", "-by", "d1", "de by", "de-b\u{7}", "d\u{e9}", "de-abcdefghijklmn"]
        {
            assert!(!is_region(other), "{other}");
        }
    }
}
