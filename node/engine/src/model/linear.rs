//! Matrices that rows are multiplied with, and how a model's tensors are taken from its file.

use anyhow::{Context, Result, ensure};
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use crate::model::ops;
use crate::weights::{self, Weights};

/// A matrix, with what is added to its products in some families.
pub(crate) struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
    /// Numbers in a row, widened for the kernels.
    width: usize,
}

impl Linear {
    pub(crate) fn new(weight: QTensor, bias: Option<Tensor>) -> Result<Self> {
        let (_, width) = weight.shape().dims2()?;
        Ok(Self { weight: QMatMul::from_qtensor(weight)?, bias, width })
    }

    /// Multiplies with a matrix that something else uses, too; `width` are the numbers in a row.
    pub(crate) fn sharing(weight: QMatMul, width: usize) -> Self {
        Self { weight, bias: None, width }
    }

    pub(crate) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        self.add_bias(self.weight.forward(&ops::widen(rows, self.width)?)?)
    }

    fn add_bias(&self, products: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(products.broadcast_add(bias)?),
            None => Ok(products),
        }
    }
}

/// Multiplies the same rows with several matrices of the same width, at once where the library can.
pub(crate) fn forward_all<const N: usize>(linears: [&Linear; N], rows: &Tensor) -> Result<[Tensor; N]> {
    let widest = linears.iter().map(|linear| linear.width).max().unwrap_or(0);
    let rows = &ops::widen(rows, widest)?;
    let weights = linears.iter().filter_map(|linear| match &linear.weight {
        QMatMul::QTensor(weight) => Some(weight.as_ref()),
        QMatMul::Tensor(_) | QMatMul::TensorF16(_) => None,
    });
    let weights: Vec<&QTensor> = weights.collect();
    let products = if weights.len() == N { QTensor::gemv_fused_shared_lhs(&weights, rows)? } else { None };
    let results = match products {
        Some(products) => linears
            .iter()
            .zip(products)
            .map(|(linear, product)| linear.add_bias(product))
            .collect::<Result<_>>(),
        None => linears.iter().map(|linear| linear.forward(rows)).collect::<Result<Vec<_>>>(),
    };
    results?.try_into().map_err(|_| anyhow::anyhow!("the tensor library returned another number of products"))
}

/// Takes tensors of the expected shapes from a file.
pub(crate) struct Tensors<'a> {
    pub(crate) weights: &'a mut Weights,
    pub(crate) device: &'a Device,
}

impl Tensors<'_> {
    pub(crate) fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), &[rows, columns])?;
        let bias = self.optional(&format!("{name}.bias"), &[rows])?;
        let bias = bias.map(|bias| bias.dequantize(self.device)).transpose()?;
        Linear::new(weight, bias)
    }

    pub(crate) fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<QTensor> {
        weights::widen(self.quantized(name, shape)?)
    }

    pub(crate) fn plain(&mut self, name: &str, width: usize) -> Result<Tensor> {
        Ok(self.quantized(name, &[width])?.dequantize(self.device)?)
    }

    pub(crate) fn quantized(&mut self, name: &str, shape: &[usize]) -> Result<QTensor> {
        let tensor = self.optional(name, shape)?;
        tensor.with_context(|| format!("the model's file lacks the tensor `{name}`: fetch it again"))
    }

    /// Takes a tensor; a 0 in `shape` stands for any number.
    pub(crate) fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<QTensor>> {
        let Some(tensor) = self.weights.take(name) else { return Ok(None) };
        let found = tensor.shape().dims();
        let fits = |(found, wanted): (&usize, &usize)| *wanted == 0 || found == wanted;
        ensure!(
            found.len() == shape.len() && found.iter().zip(shape).all(fits),
            "tensor `{name}` has the shape {found:?} instead of {shape:?}: the model's file is damaged"
        );
        Ok(Some(tensor))
    }
}
