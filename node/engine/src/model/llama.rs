//! Models of the llama family, and of those that differ from it in little: `qwen2`.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::QMatMul;
use candle_core::{Device, Tensor};

use crate::cache::{Heads, LayerCache, attend};
use crate::frame::ModelInfo;
use crate::metadata::Metadata;
use crate::model::linear::{Linear, Tensors, forward_all};
use crate::model::ops::{self, Angles, RopePairs};
use crate::model::{Model, PreparedJob};
use crate::weights::{self, Weights};

/// Bounds the layers, before memory is taken for them; the largest models have some hundred.
const LAYERS_MAX: u32 = 1024;

/// Bounds the width of a model and of its heads; the largest have some ten thousand.
const WIDTH_MAX: u32 = 1 << 20;

/// Bounds the context, whatever the file says, because a job's cache is as long; the longest models have it.
const CONTEXT_LENGTH_MAX: u32 = 1 << 20;

/// A model in memory.
pub(crate) struct Llama {
    config: Config,
    device: Device,
    embedding: QMatMul,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Linear,
    frequencies: Vec<f32>,
    info: ModelInfo,
}

/// The numbers that a file's keys say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    layers: u32,
    width: usize,
    hidden_width: usize,
    heads: Heads,
    epsilon: f32,
    rope_base: f32,
    rope_pairs: RopePairs,
    /// Tokens that the model was made for.
    pub(crate) context_length: u32,
}

impl Config {
    /// Reads and checks the keys.
    pub(crate) fn new(metadata: &Metadata) -> Result<Self> {
        let architecture = metadata.text("general.architecture").unwrap_or("none").to_owned();
        let rope_pairs = match architecture.as_str() {
            "llama" => RopePairs::Neighbours,
            "qwen2" => RopePairs::Halves,
            _ => bail!("models of the kind `{architecture}` are not supported: use one of llama or qwen2"),
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str, max: u32| {
            let number = metadata.needed_number(&key(name))?;
            ensure!((1..=max).contains(&number), "`{name}` is {number}: the model's file is damaged");
            Ok(number)
        };
        let width = number("embedding_length", WIDTH_MAX)? as usize;
        let count = number("attention.head_count", WIDTH_MAX)? as usize;
        let kv_count =
            metadata.number(&key("attention.head_count_kv")).map_or(count, |number| number as usize);
        let head_width =
            metadata.number(&key("attention.key_length")).map_or(width / count, |number| number as usize);
        ensure!(
            kv_count > 0 && count.is_multiple_of(kv_count),
            "{count} heads cannot share {kv_count}: the file is damaged"
        );
        ensure!(
            head_width > 0 && head_width.is_multiple_of(2),
            "heads of {head_width} numbers: the file is damaged"
        );
        let turned =
            metadata.number(&key("rope.dimension_count")).map_or(head_width, |number| number as usize);
        ensure!(
            turned == head_width,
            "rotary embeddings of part of a head are not supported: use another model"
        );
        if let Some(scaling) = metadata.text(&key("rope.scaling.type")).filter(|scaling| *scaling != "none") {
            bail!("rotary scaling `{scaling}` is not supported: use another model");
        }
        if metadata.number(&key("expert_count")).is_some_and(|experts| experts > 0) {
            bail!("mixtures of experts are not supported: use another model");
        }
        Ok(Self {
            layers: number("block_count", LAYERS_MAX)?,
            width,
            hidden_width: number("feed_forward_length", WIDTH_MAX)? as usize,
            heads: Heads { count, kv_count, width: head_width },
            epsilon: metadata.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
            rope_base: metadata.float(&key("rope.freq_base")).unwrap_or(10_000.0),
            rope_pairs,
            context_length: number("context_length", u32::MAX)?.min(CONTEXT_LENGTH_MAX),
        })
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    hidden_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// One job's caches, a layer each.
pub(crate) struct LlamaSession {
    caches: Vec<LayerCache>,
    length: usize,
}

/// Tokens of one job that are read in one go.
struct Span<'a> {
    session: &'a mut LlamaSession,
    ids: &'a [u32],
}

impl Llama {
    /// Takes the tensors out of `weights`; `info` is what [`Model::info`] is to say.
    pub(crate) fn new(
        weights: &mut Weights,
        config: Config,
        device: &Device,
        info: ModelInfo,
    ) -> Result<Self> {
        let mut tensors = Tensors { weights, device };
        let embedding = Arc::new(tensors.matrix("token_embd.weight", &[0, config.width])?);
        let (vocabulary_size, width) = embedding.shape().dims2()?;
        let embedding = QMatMul::from_arc(embedding)?;
        let output = match tensors.optional("output.weight", &[vocabulary_size, config.width])? {
            Some(output) => Linear::new(weights::widen(output)?, None)?,
            None => Linear::sharing(embedding.clone(), width),
        };
        let layers = (0..config.layers).map(|layer| tensors.layer(layer, &config)).collect::<Result<_>>()?;
        Ok(Self {
            norm: tensors.plain("output_norm.weight", config.width)?,
            frequencies: tensors.frequencies(&config)?,
            device: device.clone(),
            embedding,
            layers,
            output,
            config,
            info,
        })
    }

    /// Returns how many tokens the model knows.
    pub(crate) fn vocabulary_size(&self) -> usize {
        match &self.embedding {
            QMatMul::QTensor(tensor) => tensor.shape().dims()[0],
            QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => tensor.dims()[0],
        }
    }

    /// Sets the speeds that were measured after loading.
    pub(crate) fn set_speeds(&mut self, decode_milli: u64, prefill_milli: u64) {
        self.info.decode_tokens_per_s_milli = decode_milli;
        self.info.prefill_tokens_per_s_milli = prefill_milli;
    }

    /// Reads the spans' tokens into their caches, all layers but the last layer's second half.
    ///
    /// Returns the last layer's input and its normed input, a row per token.
    fn read(&self, spans: &mut [Span<'_>]) -> Result<Reading> {
        let ids: Vec<_> = spans.iter().flat_map(|span| span.ids.iter().copied()).collect();
        let angles = self.angles(spans)?;
        let rows = self.embedding.embedding(&Tensor::new(ids, &self.device)?)?;
        let mut rows = rows.narrow(1, 0, self.config.width)?.contiguous()?;
        let last = self.layers.len() - 1;
        for at in 0..last {
            let queries = self.layers[at].look_up(at, &rows, &angles, &self.config, spans)?;
            rows = self.layers[at].finish(at, rows, &queries, self.config.epsilon, spans)?;
        }
        let queries = self.layers[last].look_up(last, &rows, &angles, &self.config, spans)?;
        spans.iter_mut().for_each(|span| span.session.length += span.ids.len());
        Ok(Reading { rows, queries })
    }

    fn angles(&self, spans: &[Span<'_>]) -> Result<Angles> {
        let positions =
            spans.iter().flat_map(|span| span.session.length..span.session.length + span.ids.len());
        let positions: Vec<_> = positions.collect();
        let angles = positions
            .iter()
            .flat_map(|position| self.frequencies.iter().map(move |frequency| *position as f32 * frequency));
        let angles: Vec<_> = angles.collect();
        let tensor = |numbers: Vec<f32>| {
            Tensor::from_vec(numbers, (positions.len(), self.frequencies.len()), &self.device)
        };
        Ok(Angles {
            cosines: tensor(angles.iter().map(|angle| angle.cos()).collect())?,
            sines: tensor(angles.iter().map(|angle| angle.sin()).collect())?,
        })
    }
}

/// What is known of tokens when the last layer's keys and values are stored.
struct Reading {
    rows: Tensor,
    queries: Tensor,
}

impl Layer {
    /// Stores the rows' keys and values, and returns their queries.
    fn look_up(
        &self,
        at: usize,
        rows: &Tensor,
        angles: &Angles,
        config: &Config,
        spans: &mut [Span<'_>],
    ) -> Result<Tensor> {
        let normed = ops::rms_norm(rows, &self.attention_norm, config.epsilon)?;
        let [queries, keys, values] = forward_all([&self.query, &self.key, &self.value], &normed)?;
        let keys = ops::rope(&keys, angles, config.heads.width, config.rope_pairs)?;
        let mut begin = 0;
        for span in spans {
            let end = begin + span.ids.len();
            span.session.caches[at].append(&keys, &values, begin..end)?;
            begin = end;
        }
        Ok(ops::rope(&queries, angles, config.heads.width, config.rope_pairs)?)
    }

    /// Computes the attention and the rest of the layer.
    fn finish(
        &self,
        at: usize,
        rows: Tensor,
        queries: &Tensor,
        epsilon: f32,
        spans: &[Span<'_>],
    ) -> Result<Tensor> {
        let mut begin = 0;
        let caches = spans.iter().map(|span| {
            let rows = begin..begin + span.ids.len();
            begin = rows.end;
            (&span.session.caches[at], rows)
        });
        let attended = attend(queries, &caches.collect::<Vec<_>>())?;
        let rows = (rows + self.attention_output.forward(&attended)?)?;
        let normed = ops::rms_norm(&rows, &self.hidden_norm, epsilon)?;
        let [gate, up] = forward_all([&self.gate, &self.up], &normed)?;
        Ok((rows + self.down.forward(&ops::gated(&gate, &up)?)?)?)
    }
}

impl Model for Llama {
    type Session = LlamaSession;

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn open(&self, job: &PreparedJob) -> Result<LlamaSession> {
        let cache = |_| LayerCache::new(self.config.heads, job.capacity(), &self.device);
        let caches = (0..self.layers.len()).map(cache).collect::<candle_core::Result<_>>();
        let caches = caches.context("no memory for this job: use fewer slots or a smaller context")?;
        Ok(LlamaSession { caches, length: 0 })
    }

    fn prefill(&self, session: &mut LlamaSession, ids: &[u32]) -> Result<()> {
        self.read(&mut [Span { session, ids }]).map(|_| ())
    }

    fn decode(&self, batch: &mut [(&mut LlamaSession, u32)]) -> Result<Vec<Vec<f32>>> {
        let spans = batch.iter_mut().map(|(session, id)| Span { session, ids: std::slice::from_ref(id) });
        let mut spans: Vec<_> = spans.collect();
        let Reading { rows, queries } = self.read(&mut spans)?;
        let last = self.layers.len() - 1;
        let rows = self.layers[last].finish(last, rows, &queries, self.config.epsilon, &spans)?;
        let normed = ops::rms_norm(&rows, &self.norm, self.config.epsilon)?;
        Ok(self.output.forward(&normed)?.to_vec2()?)
    }

    fn check(&self) -> Result<()> {
        // A GPU whose kernel failed answers every later call with the same error, until the process ends; one that was
        // asked for too much memory does not.
        self.device.synchronize().context("the device cannot be used any more")
    }
}

impl Tensors<'_> {
    fn layer(&mut self, layer: u32, config: &Config) -> Result<Layer> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let Config { width, hidden_width, heads, .. } = config;
        let (row, kv_row) = (heads.row_width(), heads.kv_row_width());
        Ok(Layer {
            attention_norm: self.plain(&name("attn_norm.weight"), *width)?,
            query: self.linear(&name("attn_q"), row, *width)?,
            key: self.linear(&name("attn_k"), kv_row, *width)?,
            value: self.linear(&name("attn_v"), kv_row, *width)?,
            attention_output: self.linear(&name("attn_output"), *width, row)?,
            hidden_norm: self.plain(&name("ffn_norm.weight"), *width)?,
            gate: self.linear(&name("ffn_gate"), *hidden_width, *width)?,
            up: self.linear(&name("ffn_up"), *hidden_width, *width)?,
            down: self.linear(&name("ffn_down"), *width, *hidden_width)?,
        })
    }

    /// Returns how fast each pair of a head turns, with the file's own factors if it has any.
    fn frequencies(&mut self, config: &Config) -> Result<Vec<f32>> {
        let width = config.heads.width;
        let plain = (0..width / 2).map(|pair| config.rope_base.powf(-((2 * pair) as f32) / width as f32));
        let Some(factors) = self.optional("rope_freqs.weight", &[width / 2])? else {
            return Ok(plain.collect());
        };
        let factors = factors.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
        Ok(plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    }
}
