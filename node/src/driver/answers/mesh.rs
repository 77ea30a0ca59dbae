//! This node and those it knows: status, peers, providers, models.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use protocol::advert::{Incentive, ProviderClass};
use protocol::ids::{Digest, ModelId, NodeId};
use protocol::manifest::Issuer;
use protocol::model::Modality;
use protocol::node::RecoveryView;
use protocol::price::Price;

use crate::api::views::{
    IssuerView, NearbyView, NetworkView, PeerView, PriceView, ProviderView, ServedModelView, StatusView,
    TrafficView,
};
use crate::command::Reply;
use crate::driver::jobs::modality_of;
use crate::driver::mesh::{Nearby, name_key};
use crate::driver::{Driver, Model};
use crate::exit::{Failure, FailureKind};
use crate::net::{Direction, PeerInfo, TrafficOf, Transport};

use super::{DISCOVER_MS, Discovery, SUBMISSIONS_MAX, answer, canonical};

fn traffic_view(of: TrafficOf) -> TrafficView {
    TrafficView { kind: of.kind.to_owned(), sent: of.sent, received: of.received, streams: of.streams }
}

/// Says what a recovery waits for.
fn recovery_line(recovery: RecoveryView) -> String {
    let RecoveryView { issuers, quorum, channels, restored } = recovery;
    if issuers < quorum {
        return format!("the network's issuers, to name this node's channels: {issuers} of {quorum} have");
    }
    format!("partners and mirrors, to give channels back: {restored} of {channels} are here")
}

impl Driver {
    /// Returns what a node's owner calls it, where its advert says so.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        if node == self.node.id() {
            return self.config.name.clone();
        }
        self.node
            .providers(self.now())
            .find(|advert| advert.node == node)
            .map(|a| a.name.clone())
            .unwrap_or_default()
    }

    pub(super) fn status(&self) -> StatusView {
        let manifest = self.node.manifest();
        let waiting_for = self.waiting_for();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let mut warnings: Vec<String> = self
            .models
            .iter()
            .filter(|(_, m)| m.state == "failed")
            .map(|(n, m)| format!("{n}: {}", m.detail))
            .collect();
        if manifest.issuers.len() == 1 && self.identity.issuer.is_none() {
            warnings.push("this network has one issuer, which is trusted with all deposits".to_owned());
        }
        warnings.extend(self.too_few_issuers());
        warnings.extend(self.node.clock_off_ms().map(clock_warning));
        warnings.extend(self.node.books_view().findings.iter().map(ToString::to_string));
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config.name.clone(),
            node: self.node.id().to_string(),
            account: self.node.account().to_string(),
            ready: waiting_for.is_empty(),
            waiting_for,
            network: NetworkView {
                id: self.node.domain().to_string(),
                name: manifest.name.clone(),
                issuer: self.identity.issuer.is_some(),
                issuers: self.issuers(),
                quorum: count(manifest.quorum()),
                dev: manifest.development,
                epoch: u64::from(manifest.epoch(self.now()).0),
                budget_left: self.node.budget_left().map(Into::into),
            },
            addresses: self.addresses(),
            uptime_ms: self.clock.elapsed_ms(),
            peers: count(self.node.peers().count()),
            models: self.models.values().map(|model| self.model_view(model)).collect(),
            jobs_serving: count(self.serving.len()),
            jobs_submitted: count(self.jobs.len()),
            available: self.node.balance().available().into(),
            nearby: self.nearby(),
            warnings,
            offences: self.offences.names(),
            traffic: self.net.traffic().into_iter().map(traffic_view).collect(),
            books: self.books_state(),
            data: self.config.data.display().to_string(),
        }
    }

    fn issuers(&self) -> Vec<IssuerView> {
        let reachable = self.node.reachable_issuers();
        let view = |issuer: &Issuer| IssuerView {
            node: issuer.node.to_string(),
            key: HEXLOWER.encode(&issuer.key.0),
            reachable: reachable.contains(&issuer.node),
        };
        self.node.manifest().issuers.iter().map(view).collect()
    }

    /// Says that nothing can be agreed on, where that is so and the network has several issuers.
    pub(in crate::driver) fn too_few_issuers(&self) -> Option<String> {
        let manifest = self.node.manifest();
        let (issuers, quorum) = (manifest.issuers.len(), manifest.quorum());
        let reachable = self.node.reachable_issuers().len();
        (issuers > 1 && reachable < quorum).then(|| {
            format!(
                "{reachable} of the network's {issuers} issuers can be reached and {quorum} must agree: until one more \
                 is back no channel opens and no credits move between accounts"
            )
        })
    }

    pub(super) fn waiting_for(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.net.listening().is_empty() {
            waiting.push("an address to listen on".to_owned());
        }
        if !self.node.is_admitted() {
            waiting.push("the network's issuer, to be admitted".to_owned());
        }
        if let Some(recovery) = self.node.recovery() {
            waiting.push(recovery_line(recovery));
        }
        let loading = self.models.iter().filter(|(_, model)| matches!(model.state, "loading" | "restarting"));
        waiting.extend(loading.map(|(name, model)| format!("{name}: {} {}", model.state, model.detail)));
        waiting
    }

    pub(super) fn nearby(&self) -> Vec<NearbyView> {
        let view = |nearby: &Nearby| NearbyView {
            network: Digest(nearby.domain).to_string(),
            name: nearby.name.clone(),
            address: nearby.addresses.first().map(ToString::to_string).unwrap_or_default(),
            join:
                "sharemesh up --data NEW_FOLDER --join TICKET (its owner makes one: sharemesh network ticket)"
                    .to_owned(),
        };
        self.mesh.nearby.iter().map(view).collect()
    }

    pub(super) fn peers(&self) -> Vec<PeerView> {
        let now = self.now();
        let known = |node| self.node.peers().find(|peer| peer.node == node);
        let view = |info: PeerInfo| {
            let node = NodeId(info.peer.0);
            let models = self.node.providers(now).filter(|advert| advert.node == node);
            PeerView {
                node: node.to_string(),
                name: Some(self.name_of(node)).filter(|name| !name.is_empty()),
                account: known(node).and_then(|peer| peer.account).map(|account| account.to_string()),
                transport: match info.transport {
                    Transport::Quic => "quic",
                    Transport::Tcp => "tcp",
                    Transport::Relay => "relay",
                }
                .to_owned(),
                address: info.addresses.first().map(ToString::to_string).unwrap_or_default(),
                direction: match info.direction {
                    Direction::Accepted => "in",
                    Direction::Dialed => "out",
                }
                .to_owned(),
                rtt_us: info.rtt_micro,
                connected_ms: u64::try_from(info.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                models: models
                    .flat_map(|advert| advert.models.iter().map(|offer| offer.name.clone()))
                    .collect(),
                offences: self.offences.of(node),
            }
        };
        self.net.peers().into_iter().map(view).collect()
    }

    pub(super) fn on_providers(&mut self, model: Option<String>, reply: Reply<Vec<ProviderView>>) {
        match &model {
            Some(name) => self.net.lookup(name_key(canonical(name))),
            None => {
                for entry in crate::models::catalogue::entries() {
                    self.net.lookup(name_key(&entry.name));
                }
                self.net.lookup(name_key(crate::models::FAKE));
            }
        }
        if self.waiting.discoveries.len() >= SUBMISSIONS_MAX {
            let failure =
                Failure::new(FailureKind::Busy, "too many wait for providers: try again in a moment");
            return answer(reply, Err(failure.retry_after(DISCOVER_MS)));
        }
        let until_ms = self.clock.now_ms() + DISCOVER_MS;
        self.waiting.discoveries.push(Discovery { model, reply, until_ms });
    }

    /// Says whether [`Self::providers`] would find anybody; asked after every event while somebody waits.
    pub(super) fn knows_provider(&self, model: Option<&str>) -> bool {
        let model = model.map(canonical);
        let is_wanted = |name: &str, id: ModelId| {
            model.is_none_or(|wanted| {
                wanted == name || wanted.parse().is_ok_and(|wanted: ModelId| wanted == id)
            })
        };
        let mut offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let mut local = self.models.values().filter(|model| model.state == "ready");
        offers.any(|offer| is_wanted(&offer.name, offer.model))
            || local.any(|model| model.id.is_some_and(|id| is_wanted(&model.served.name, id)))
    }

    pub(in crate::driver) fn providers(&self, model: Option<&str>) -> Vec<ProviderView> {
        let model = model.map(canonical);
        let now = self.now();
        let rtts: BTreeMap<NodeId, u64> = self
            .net
            .peers()
            .into_iter()
            .filter_map(|info| Some((NodeId(info.peer.0), info.rtt_micro?)))
            .collect();
        let mut views = Vec::new();
        for advert in self.node.providers(now) {
            for offer in &advert.models {
                let device = advert.devices.first();
                views.push(ProviderView {
                    node: advert.node.to_string(),
                    account: advert.account.to_string(),
                    name: advert.name.clone(),
                    local: false,
                    model: offer.name.clone(),
                    model_id: offer.model.to_string(),
                    kind: kind_name(offer.modality).to_owned(),
                    price: price_view(&offer.price),
                    slots: u32::from(offer.slots),
                    busy: u32::from(offer.busy),
                    tokens_per_s_milli: offer.decode_milli,
                    context: offer.context_tokens,
                    quantisation: offer.quantisation.clone(),
                    licence: "open".to_owned(),
                    incentive: match advert.incentive {
                        Incentive::Exchange => "exchange",
                        Incentive::Rewards => "rewards",
                    }
                    .to_owned(),
                    class: class_name(advert.class).to_owned(),
                    region: region_of(&advert.region),
                    device: device.map(|device| device.kind.clone()).unwrap_or_default(),
                    device_name: device.map(|device| device.name.clone()).unwrap_or_default(),
                    memory_bytes: device.map_or(0, |device| device.memory_bytes),
                    rtt_us: rtts.get(&advert.node).copied(),
                    expires_ms: advert.valid_to.0,
                });
            }
        }
        views.extend(
            self.models
                .values()
                .filter(|model| model.state == "ready")
                .map(|model| self.local_provider(model)),
        );
        let wanted =
            |view: &ProviderView| model.is_none_or(|name| view.model == name || view.model_id == name);
        views.retain(wanted);
        views
    }

    pub(super) fn local_provider(&self, model: &Model) -> ProviderView {
        let view = self.model_view(model);
        ProviderView {
            node: self.node.id().to_string(),
            account: self.node.account().to_string(),
            name: self.config.name.clone(),
            local: true,
            model: view.name,
            model_id: view.model_id,
            // Nothing is said of a model that is not loaded yet.
            kind: model.info.as_ref().map(|info| kind_name(modality_of(info)).to_owned()).unwrap_or_default(),
            price: view.price,
            slots: view.slots,
            busy: view.busy,
            tokens_per_s_milli: view.tokens_per_s_milli,
            context: view.context,
            device: view.device,
            quantisation: model.info.as_ref().map(|info| info.quantisation.clone()).unwrap_or_default(),
            licence: "open".to_owned(),
            incentive: "exchange".to_owned(),
            class: class_name(self.config.class).to_owned(),
            region: region_of(&self.config.region),
            memory_bytes: model.info.as_ref().map_or(0, |info| info.device.memory_bytes),
            ..ProviderView::default()
        }
    }

    pub(super) fn model_view(&self, model: &Model) -> ServedModelView {
        let busy = self
            .node
            .served()
            .find(|(offer, ..)| Some(offer.model) == model.id)
            .map_or(0, |(_, busy, _)| busy);
        let info = model.info.as_ref();
        ServedModelView {
            name: model.served.name.clone(),
            model_id: model.id.map(|id| id.to_string()).unwrap_or_default(),
            state: model.state.to_owned(),
            detail: model.detail.clone(),
            price: price_view(&Price {
                call: 0,
                input: model.served.price.input_nano_per_million,
                output: model.served.price.output_nano_per_million,
            }),
            slots: model.served.slots,
            busy: u32::from(busy),
            tokens_per_s_milli: info.map_or(0, |info| info.decode_tokens_per_s_milli),
            context: info.map_or(0, |info| info.context_length),
            device: info.map(|info| info.device.kind.clone()).unwrap_or_default(),
            worker_pid: model.pid,
            restarts: model.restarts,
        }
    }

    pub(super) fn check_model(&self, name: &str) -> Result<(), Failure> {
        let permitted = name != crate::models::FAKE || self.node.manifest().development;
        if permitted {
            Ok(())
        } else {
            Err(Failure::usage("the fake model is served only in a network made with `sharemesh up --dev`"))
        }
    }

    pub(super) fn unload(&mut self, name: &str) -> Result<(), Failure> {
        let model = self.models.get_mut(name);
        let model = model
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("`{name}` is not served here")))?;
        model.state = "stopping";
        self.workers.stop(name);
        Ok(())
    }
}

const fn class_name(class: ProviderClass) -> &'static str {
    match class {
        ProviderClass::Community => "community",
        ProviderClass::Company => "company",
    }
}

fn region_of(said: &str) -> Option<String> {
    Some(said.to_owned()).filter(|region| !region.is_empty())
}

/// Returns what a model makes, as the API says it.
const fn kind_name(modality: Modality) -> &'static str {
    match modality {
        Modality::Text => "text",
        Modality::Embedding => "embedding",
        Modality::Speech => "speech",
        Modality::Image => "image",
    }
}

pub(super) fn price_view(price: &Price) -> PriceView {
    PriceView { input_per_million: price.input.into(), output_per_million: price.output.into() }
}

/// Says what a clock that is off does, and what to do.
pub(in crate::driver) fn clock_warning(ahead_ms: i64) -> String {
    let seconds = ahead_ms.unsigned_abs() / 1000;
    let where_it_is = if ahead_ms > 0 { "behind" } else { "ahead of" };
    format!(
        "this machine's clock is {seconds} s {where_it_is} the network's issuers: set it right, for example with NTP; \
         until then others do not believe what this node offers, nor it what they offer"
    )
}
