//! Encoders of the kind `bert`, which make one vector of a text.

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::QMatMul;
use candle_core::{D, Device, Tensor};

use crate::frame::ModelInfo;
use crate::metadata::Metadata;
use crate::model::linear::{Linear, Tensors, forward_all};
use crate::weights::Weights;

/// Bounds the layers, before memory is taken for them; the largest encoders of this kind have 24.
const LAYERS_MAX: u32 = 256;

/// Bounds the numbers of a vector, and so what one text takes on its way: the largest encoders of this kind have 1,024.
pub(crate) const WIDTH_MAX: u32 = 4096;

/// Bounds the width between a layer's two halves.
const HIDDEN_WIDTH_MAX: u32 = 1 << 16;

/// Bounds the heads, each of which compares every token of a text with every other.
const HEADS_MAX: u32 = 128;

/// Bounds the tokens of one text, whatever the file says: memory grows with their square. Nodes believe no more.
const CONTEXT_LENGTH_MAX: u32 = 2048;

/// Bounds the numbers by which the heads compare the tokens of the longest text: half a GiB.
const SCORES_MAX: u64 = 1 << 27;

/// Bounds the rows of the tables of positions and kinds, which are unpacked whole.
const ROWS_MAX: usize = 8192;

/// The numbers that a file's keys say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    layers: u32,
    width: usize,
    hidden_width: usize,
    heads: usize,
    epsilon: f32,
    pooling: Pooling,
    /// Tokens of one text.
    pub(crate) context_length: u32,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token, which stands for the whole.
    First,
}

impl Config {
    /// Says whether a file's model is of this kind.
    pub(crate) fn is_meant(metadata: &Metadata) -> bool {
        metadata.text("general.architecture") == Some("bert")
    }

    /// Reads and checks the keys.
    pub(crate) fn new(metadata: &Metadata) -> Result<Self> {
        let number = |name: &str, max: u32| {
            let key = format!("bert.{name}");
            let number = metadata.needed_number(&key)?;
            ensure!((1..=max).contains(&number), "`{key}` is {number}: the model's file is damaged");
            Ok(number)
        };
        let width = number("embedding_length", WIDTH_MAX)? as usize;
        let heads = number("attention.head_count", HEADS_MAX)? as usize;
        ensure!(width.is_multiple_of(heads), "{heads} heads cannot share {width}: the file is damaged");
        let pooling = match metadata.number("bert.pooling_type") {
            None | Some(1) => Pooling::Mean,
            Some(2) => Pooling::First,
            Some(other) => {
                bail!("pooling of type {other} is not supported: use a model with mean or CLS pooling")
            }
        };
        let context_length = number("context_length", u32::MAX)?.min(CONTEXT_LENGTH_MAX);
        ensure!(
            heads as u64 * u64::from(context_length).pow(2) <= SCORES_MAX,
            "{heads} heads for a context of {context_length} tokens take too much memory: use another model"
        );
        let epsilon = metadata.float("bert.attention.layer_norm_epsilon").unwrap_or(1e-12);
        ensure!((0.0..1.0).contains(&epsilon), "an epsilon of {epsilon}: the model's file is damaged");
        Ok(Self {
            layers: number("block_count", LAYERS_MAX)?,
            width,
            hidden_width: number("feed_forward_length", HIDDEN_WIDTH_MAX)? as usize,
            heads,
            epsilon,
            pooling,
            context_length,
        })
    }

    /// Returns the numbers of one vector.
    pub(crate) fn dimensions(&self) -> u32 {
        u32::try_from(self.width).expect("at most WIDTH_MAX")
    }
}

/// A model in memory.
pub(crate) struct Bert {
    config: Config,
    device: Device,
    words: QMatMul,
    positions: Tensor,
    kind: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    info: ModelInfo,
}

/// Shifts and scales each row.
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn forward(&self, rows: &Tensor, epsilon: f32) -> Result<Tensor> {
        Ok(candle_nn::ops::layer_norm(&rows.contiguous()?, &self.weight, &self.bias, epsilon)?)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

impl Bert {
    /// Takes the tensors out of `weights`; `info` is what [`Bert::info`] is to say.
    pub(crate) fn new(
        weights: &mut Weights,
        config: Config,
        device: &Device,
        info: ModelInfo,
    ) -> Result<Self> {
        let mut tensors = Tensors { weights, device };
        let width = config.width;
        let words = QMatMul::from_qtensor(tensors.quantized("token_embd.weight", &[0, width])?)?;
        let positions = tensors.table("position_embd.weight", width)?;
        ensure!(
            positions.dim(0)? >= config.context_length as usize,
            "the model has {} positions for a context of {}: its file is damaged",
            positions.dim(0)?,
            config.context_length
        );
        // All of a text is of the first kind.
        let kind = tensors.table("token_types.weight", width)?.narrow(0, 0, 1)?;
        let norm = tensors.norm("token_embd_norm", width)?;
        let layers =
            (0..config.layers).map(|layer| tensors.encoder(layer, &config)).collect::<Result<_>>()?;
        Ok(Self { device: device.clone(), words, positions, kind, norm, layers, config, info })
    }

    pub(crate) fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Sets the speeds that were measured after loading: vectors of short texts, and tokens of a long one.
    pub(crate) fn set_speeds(&mut self, vectors_milli: u64, tokens_milli: u64) {
        self.info.decode_tokens_per_s_milli = vectors_milli;
        self.info.prefill_tokens_per_s_milli = tokens_milli;
    }

    /// Returns how many tokens the model knows.
    pub(crate) fn vocabulary_size(&self) -> usize {
        match &self.words {
            QMatMul::QTensor(tensor) => tensor.shape().dims()[0],
            QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => tensor.dims()[0],
        }
    }

    /// Returns a vector of length 1 for each text, which is not empty, within the context and the vocabulary.
    pub(crate) fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut rows = self.look_up(texts)?;
        for layer in &self.layers {
            rows = layer.forward(&rows, texts, &self.config)?;
        }
        let mut begin = 0;
        texts
            .iter()
            .map(|text| {
                let of_text = rows.narrow(0, begin, text.len())?;
                begin += text.len();
                let pooled = match self.config.pooling {
                    Pooling::Mean => of_text.mean(0)?,
                    Pooling::First => of_text.get(0)?,
                };
                normalised(pooled.to_vec1()?)
            })
            .collect()
    }

    /// Waits for what the device still computes, and says whether it can go on.
    pub(crate) fn check(&self) -> Result<()> {
        self.device.synchronize().context("the device cannot be used any more")
    }

    fn look_up(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let ids = texts.concat();
        let positions = texts.iter().flat_map(|text| (0..).zip(*text).map(|(position, _)| position));
        let positions: Vec<u32> = positions.collect();
        let words = self.words.embedding(&Tensor::new(ids, &self.device)?)?;
        let positions = self.positions.embedding(&Tensor::new(positions, &self.device)?)?;
        let rows = (words + positions)?.broadcast_add(&self.kind)?;
        self.norm.forward(&rows, self.config.epsilon)
    }
}

/// Divides a vector by its length.
fn normalised(vector: Vec<f32>) -> Result<Vec<f32>> {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    ensure!(
        length.is_finite() && length > 0.0,
        "the model computed no numbers: the file may be damaged, fetch it again"
    );
    #[expect(clippy::cast_possible_truncation, reason = "a number between -1 and 1")]
    Ok(vector.into_iter().map(|number| (f64::from(number) / length) as f32).collect())
}

impl Layer {
    fn forward(&self, rows: &Tensor, texts: &[&[u32]], config: &Config) -> Result<Tensor> {
        let [queries, keys, values] = forward_all([&self.query, &self.key, &self.value], rows)?;
        let mut begin = 0;
        let attended = texts.iter().map(|text| {
            let part = |rows: &Tensor| heads(&rows.narrow(0, begin, text.len())?, config.heads);
            let attended = attend(&part(&queries)?, &part(&keys)?, &part(&values)?);
            begin += text.len();
            attended
        });
        let attended = Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)?;
        let rows = (rows + self.attention_output.forward(&attended)?)?;
        let rows = self.attention_norm.forward(&rows, config.epsilon)?;
        let hidden = self.up.forward(&rows)?.gelu_erf()?;
        let rows = (&rows + self.down.forward(&hidden)?)?;
        self.output_norm.forward(&rows, config.epsilon)
    }
}

/// Turns rows of tokens to a matrix for each head.
fn heads(rows: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, width) = rows.dims2()?;
    Ok(rows.reshape((tokens, heads, width / heads))?.transpose(0, 1)?.contiguous()?)
}

/// Lets each token of one text look at all of them; returns a row per token.
fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (count, tokens, width) = queries.dims3()?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let scale = 1.0 / (width as f64).sqrt();
    let scores = (queries.matmul(&keys.transpose(D::Minus2, D::Minus1)?)? * scale)?;
    let attended = candle_nn::ops::softmax_last_dim(&scores)?.matmul(values)?;
    Ok(attended.transpose(0, 1)?.reshape((tokens, count * width))?)
}

impl Tensors<'_> {
    fn encoder(&mut self, layer: u32, config: &Config) -> Result<Layer> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let Config { width, hidden_width, .. } = *config;
        Ok(Layer {
            query: self.linear(&name("attn_q"), width, width)?,
            key: self.linear(&name("attn_k"), width, width)?,
            value: self.linear(&name("attn_v"), width, width)?,
            attention_output: self.linear(&name("attn_output"), width, width)?,
            attention_norm: self.norm(&name("attn_output_norm"), width)?,
            up: self.linear(&name("ffn_up"), hidden_width, width)?,
            down: self.linear(&name("ffn_down"), width, hidden_width)?,
            output_norm: self.norm(&name("layer_output_norm"), width)?,
        })
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.plain(&format!("{name}.weight"), width)?;
        Ok(Norm { weight, bias: self.plain(&format!("{name}.bias"), width)? })
    }

    /// Takes rows that are looked up by their number.
    fn table(&mut self, name: &str, width: usize) -> Result<Tensor> {
        let table = self.quantized(name, &[0, width])?;
        let rows = table.shape().dims()[0];
        ensure!(
            rows <= ROWS_MAX,
            "`{name}` has {rows} rows, at most {ROWS_MAX} are accepted: use another model"
        );
        Ok(table.dequantize(self.device)?)
    }
}
