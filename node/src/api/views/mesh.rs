//! This node, its network, its peers, who serves what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BooksStateView, Money, PriceView};

impl NetworkView {
    /// Returns how many issuers can be spoken to now.
    #[must_use]
    pub fn issuers_reachable(&self) -> usize {
        self.issuers.iter().filter(|issuer| issuer.reachable).count()
    }
}

// ---------------------------------------------------------------------------------------------- this node

/// This node: `GET status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Version of the program.
    pub version: String,
    /// What its owner calls it.
    pub name: String,
    /// Its node id.
    pub node: String,
    /// Its owner's account.
    pub account: String,
    /// Whether it takes jobs: listening, joined, and the models it was told to serve are loaded or given up.
    pub ready: bool,
    /// What is still to be done until then, in words.
    pub waiting_for: Vec<String>,
    /// The network it is in.
    pub network: NetworkView,
    /// Where it listens, with the node id, so that another node can dial it.
    pub addresses: Vec<String>,
    /// Time since start.
    pub uptime_ms: u64,
    /// Nodes connected now.
    pub peers: u32,
    /// Models it serves.
    pub models: Vec<ServedModelView>,
    /// Jobs it works on for others.
    pub jobs_serving: u32,
    /// Jobs it submitted that still run.
    pub jobs_submitted: u32,
    /// What it can spend.
    pub available: Money,
    /// Home networks seen on this LAN and not joined.
    pub nearby: Vec<NearbyView>,
    /// What the owner should look at, in words.
    pub warnings: Vec<String>,
    /// Counts of what peers did wrong, by name.
    pub offences: Vec<(String, u64)>,
    /// What it has sent to other nodes and received, by what it was for.
    #[serde(default)]
    pub traffic: Vec<TrafficView>,
    /// What it knows of the issuers' books.
    #[serde(default)]
    pub books: BooksStateView,
    /// The directory of its data.
    pub data: String,
}

/// Bytes on streams between nodes, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrafficView {
    /// `messages`, `jobs` (their tokens), `gossip`, `directory`, `upkeep` (identify and ping) or `other`.
    pub kind: String,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Streams opened, by either side.
    pub streams: u64,
}

/// The network a node is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether this node is its issuer.
    pub issuer: bool,
    /// Its issuers.
    pub issuers: Vec<IssuerView>,
    /// How many of them must agree.
    #[serde(default)]
    pub quorum: u32,
    /// Whether it permits the fake engine.
    pub dev: bool,
    /// The epoch it is in.
    pub epoch: u64,
    /// Issuer only: what is left of the stated budget for its tickets and grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<Money>,
}

/// One issuer of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuerView {
    /// The node that speaks for it.
    pub node: String,
    /// The key with which it signs.
    pub key: String,
    /// Whether it can be spoken to now, or is this node.
    pub reachable: bool,
}

/// A home network seen on this LAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NearbyView {
    /// Its id.
    pub network: String,
    /// The name of the node that was seen.
    pub name: String,
    /// Where it was seen.
    pub address: String,
    /// The command that joins it.
    pub join: String,
}

/// A connected node: `GET peers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerView {
    /// Its node id.
    pub node: String,
    /// What its owner calls it, where it said so.
    pub name: Option<String>,
    /// Its account, where it said so.
    pub account: Option<String>,
    /// `quic`, `tcp` or `relay`.
    pub transport: String,
    /// Where it is.
    pub address: String,
    /// Who dialled: `in` or `out`.
    pub direction: String,
    /// Last round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// Time connected.
    pub connected_ms: u64,
    /// Models it serves.
    pub models: Vec<String>,
    /// Offences counted against it.
    pub offences: u32,
}

/// A provider of a model, from its last advert: `GET providers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProviderView {
    /// Its node id.
    pub node: String,
    /// Its account.
    pub account: String,
    /// What its owner calls it.
    pub name: String,
    /// Whether it is this node.
    pub local: bool,
    /// The model's name.
    pub model: String,
    /// The model's id.
    pub model_id: String,
    /// What it makes: `text` or `embedding`.
    #[serde(default)]
    pub kind: String,
    /// What it asks.
    pub price: PriceView,
    /// Jobs at once.
    pub slots: u32,
    /// Slots taken.
    pub busy: u32,
    /// Measured speed of one answer in thousandths of tokens per second; of vectors, of so many of short texts.
    pub tokens_per_s_milli: u64,
    /// Prompt and answer together, or one text that becomes a vector.
    pub context: u32,
    /// How weights are stored.
    pub quantisation: String,
    /// The licence's identifier.
    pub licence: String,
    /// `exchange`, `rewards` or `mission`.
    pub incentive: String,
    /// `community` or `company`, by its own word.
    pub class: String,
    /// Where it says that it is, as an ISO 3166 code.
    pub region: Option<String>,
    /// The device's kind, `cpu` or `cuda`.
    pub device: String,
    /// The device's own name.
    pub device_name: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Last round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// When the advert ends.
    pub expires_ms: u64,
}

/// A model that this node serves: part of `GET status` and all of `GET models`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServedModelView {
    /// Its name.
    pub name: String,
    /// Its id in the network.
    pub model_id: String,
    /// `loading`, `ready`, `restarting`, `failed` or `stopping`.
    pub state: String,
    /// More on the state: percent loaded, why it failed and what to do.
    pub detail: String,
    /// What this node asks.
    pub price: PriceView,
    /// Jobs at once.
    pub slots: u32,
    /// Slots taken.
    pub busy: u32,
    /// Measured speed of one answer in thousandths of tokens per second.
    pub tokens_per_s_milli: u64,
    /// Prompt and answer together.
    pub context: u32,
    /// The device's kind and name.
    pub device: String,
    /// Process id of the worker.
    pub worker_pid: Option<u32>,
    /// How often the worker was started again.
    pub restarts: u32,
}

/// What `POST models` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadBody {
    /// A name from the catalogue or the path of a file.
    pub model: String,
}
