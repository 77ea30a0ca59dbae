//! The operations between matrix products: plain loops on a CPU, the tensor library's kernels elsewhere.
//!
//! On a CPU each row's result is computed in one order whatever else is computed with it, and sums are kept in
//! [`LANES`] parts, so that every vector width adds in the same order. Reading a prompt at once, or token by
//! token, or beside other jobs, therefore gives the same bits.

use candle_core::{Result, Storage, Tensor};

/// Parts of a sum: a vector register of the widest kind.
const LANES: usize = 16;

/// Calls `read` with the numbers of a contiguous tensor on a CPU.
pub(crate) fn with_slice<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("the tensor is not on a CPU") };
    let Some((begin, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("the tensor is not contiguous")
    };
    Ok(read(&storage.as_slice::<f32>()?[begin..end]))
}

/// Appends zeros to each row up to a width, where the weights are as wide.
pub(crate) fn widen(rows: &Tensor, width: usize) -> Result<Tensor> {
    match width - rows.dim(1)? {
        0 => Ok(rows.clone()),
        missing => rows.pad_with_zeros(1, 0, missing),
    }
}

/// Divides each row by its root mean square and multiplies it with the weights.
pub(crate) fn rms_norm(rows: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if !rows.device().is_cpu() {
        return candle_nn::ops::rms_norm(&rows.contiguous()?, weight, epsilon);
    }
    let width = weight.elem_count();
    let normed =
        with_slice(rows, |rows| with_slice(weight, |weight| rms_norm_rows(rows, weight, width, epsilon)))??;
    Tensor::from_vec(normed, rows.shape(), rows.device())
}

fn rms_norm_rows(rows: &[f32], weight: &[f32], width: usize, epsilon: f32) -> Vec<f32> {
    let mut normed = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(width) {
        let scale = 1.0 / (dot(row, row) / width as f32 + epsilon).sqrt();
        normed.extend(row.iter().zip(weight).map(|(number, weight)| number * scale * weight));
    }
    normed
}

/// Returns `silu(gate) * up`.
pub(crate) fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return gate.silu()? * up;
    }
    let product = with_slice(gate, |gate| {
        with_slice(up, |up| {
            let pairs = gate.iter().zip(up);
            pairs.map(|(gate, up)| gate / (1.0 + exp(-gate)) * up).collect::<Vec<_>>()
        })
    })??;
    Tensor::from_vec(product, gate.shape(), gate.device())
}

/// Which numbers of a head a rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopePairs {
    /// Neighbours, as GGUF files of the llama family are laid out.
    Neighbours,
    /// One of each half, as GGUF files of most other families are.
    Halves,
}

/// The cosines and sines of some positions, a row each.
pub(crate) struct Angles {
    pub(crate) cosines: Tensor,
    pub(crate) sines: Tensor,
}

/// Turns every head of each row by the row's angles.
pub(crate) fn rope(rows: &Tensor, angles: &Angles, head_width: usize, pairs: RopePairs) -> Result<Tensor> {
    if !rows.device().is_cpu() {
        return rope_on_device(rows, angles, head_width, pairs);
    }
    let half = head_width / 2;
    let row_width = rows.dim(1)?;
    let mut turned = rows.flatten_all()?.to_vec1::<f32>()?;
    with_slice(&angles.cosines, |cosines| {
        with_slice(&angles.sines, |sines| {
            let angles = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
            for (row, (cosines, sines)) in turned.chunks_exact_mut(row_width).zip(angles) {
                for head in row.chunks_exact_mut(head_width) {
                    turn(head, cosines, sines, pairs);
                }
            }
        })
    })??;
    Tensor::from_vec(turned, rows.shape(), rows.device())
}

fn turn(head: &mut [f32], cosines: &[f32], sines: &[f32], pairs: RopePairs) {
    let half = cosines.len();
    for (at, (cosine, sine)) in cosines.iter().zip(sines).enumerate() {
        let (left, right) = match pairs {
            RopePairs::Neighbours => (2 * at, 2 * at + 1),
            RopePairs::Halves => (at, at + half),
        };
        let (x, y) = (head[left], head[right]);
        head[left] = x * cosine - y * sine;
        head[right] = x * sine + y * cosine;
    }
}

fn rope_on_device(rows: &Tensor, angles: &Angles, head_width: usize, pairs: RopePairs) -> Result<Tensor> {
    let (count, row_width) = rows.dims2()?;
    let heads =
        rows.reshape((1, count, row_width / head_width, head_width))?.transpose(1, 2)?.contiguous()?;
    let turned = match pairs {
        RopePairs::Neighbours => candle_nn::rotary_emb::rope_i(&heads, &angles.cosines, &angles.sines)?,
        RopePairs::Halves => candle_nn::rotary_emb::rope(&heads, &angles.cosines, &angles.sines)?,
    };
    turned.transpose(1, 2)?.reshape((count, row_width))
}

/// Sums the products of two rows of the same length.
#[inline(always)]
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sum_lanes(lanes) + rest
}

#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Adds `factor * row` to `sum`.
#[inline(always)]
pub(crate) fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, number) in sum.iter_mut().zip(row) {
        *sum += factor * number;
    }
}

/// Turns scores to weights that sum to one.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let highest = highest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - highest);
    }
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    let scale = 1.0 / (sum_lanes(lanes) + rest.iter().sum::<f32>());
    for score in scores {
        *score *= scale;
    }
}

/// Returns `e^x` to seven digits, in steps that a compiler can do for a whole vector: `2^n e^r` with `r` within
/// half of `ln 2`, and for `e^r` the polynomial of Cephes' `expf` (Moshier, netlib). The same on all machines.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = sum * r + coefficient;
    }
    let e_r = sum * r * r + r + 1.0;
    e_r * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn tensor(rows: usize, width: usize) -> Tensor {
        let numbers = (0..rows * width).map(|at| ((at * 37 % 101) as f32 - 50.0) / 25.0).collect::<Vec<_>>();
        Tensor::from_vec(numbers, (rows, width), &Device::Cpu).expect("the shape fits")
    }

    fn assert_close(left: &Tensor, right: &Tensor) {
        let difference =
            (left - right).and_then(|difference| difference.abs()?.max_all()?.to_scalar::<f32>());
        let difference = difference.expect("same shapes");
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn the_loops_agree_with_the_library() {
        let rows = tensor(3, 100);
        let weight = tensor(1, 100).flatten_all().expect("flat");
        let normed = candle_nn::ops::rms_norm(&rows, &weight, 1e-5).expect("computes");
        assert_close(&rms_norm(&rows, &weight, 1e-5).expect("computes"), &normed);

        let expected = (rows.silu().expect("computes") * &rows).expect("computes");
        assert_close(&gated(&rows, &rows).expect("computes"), &expected);

        let angles = Angles {
            cosines: tensor(3, 10).cos().expect("computes"),
            sines: tensor(3, 10).sin().expect("computes"),
        };
        for pairs in [RopePairs::Neighbours, RopePairs::Halves] {
            let expected = rope_on_device(&rows, &angles, 20, pairs).expect("computes");
            assert_close(&rope(&rows, &angles, 20, pairs).expect("computes"), &expected);
        }
    }

    #[test]
    fn a_softmax_sums_to_one_whatever_the_scores() {
        for count in [1, 7, 16, 33] {
            let mut scores: Vec<_> = (0..count).map(|at| at as f32 * 10.0 - 200.0).collect();
            softmax(&mut scores);
            assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{scores:?}");
        }
    }

    proptest! {
        #[test]
        fn exp_is_exact_to_six_digits(x in -87.0_f32..88.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - exact).abs() <= exact * 1e-6, "{} {}", exp(x), exact);
        }

        #[test]
        fn dot_agrees_with_a_plain_sum(numbers in prop::collection::vec(-2.0_f32..2.0, 0..100)) {
            let plain: f64 = numbers.iter().map(|number| f64::from(number * number)).sum();
            prop_assert!((f64::from(dot(&numbers, &numbers)) - plain).abs() < 1e-3);
        }
    }
}
