//! Reads a model file's tensors, in types that this machine computes fast.
//!
//! On a CPU the tensor library has fast kernels for some quantisations only. Tensors of others are requantised
//! once to `Q8_0`, which holds them with little loss, and kept as a file in the cache folder: its name carries
//! the digest of the source, and its last 32 bytes are the digest of its other bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use crate::gguf_check::{self, Checked};
use crate::metadata::Metadata;

/// Bytes of the digest at the end of a cached file.
const TRAILER_BYTES: u64 = 32;

/// A model file in memory, or on the device.
pub(crate) struct Weights {
    pub(crate) metadata: Metadata,
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
    /// BLAKE3 of the source file.
    pub(crate) digest: [u8; 32],
    /// The type of most weights in the source file.
    pub(crate) quantisation: String,
    tensors: HashMap<String, QTensor>,
}

impl Weights {
    /// Takes a tensor, if the file has it.
    pub(crate) fn take(&mut self, name: &str) -> Option<QTensor> {
        self.tensors.remove(name)
    }
}

/// Reads the file at `path`; `progress` is told the percentage.
pub(crate) fn load(
    path: &Path,
    cache_dir: &Path,
    device: &Device,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<Weights> {
    let shown = path.display();
    progress(0, "checking the file");
    let mut source = Source::open(path).with_context(|| format!("cannot use the model file {shown}"))?;
    progress(5, "computing the file's digest");
    let digest = digest(&mut source.file, None).with_context(|| format!("cannot read {shown}"))?;
    let quantisation = source.quantisation();
    let tensors = if device.is_cpu() && source.has_slow_tensors() {
        source.read_requantised(&cache_path(cache_dir, &digest), progress)
    } else {
        source.read_all(device, progress)
    };
    let tensors = tensors.with_context(|| format!("cannot read the tensors of {shown}"))?;
    Ok(Weights {
        parameters: source.checked.parameters,
        bytes: tensors.values().map(|tensor| tensor.storage_size_in_bytes() as u64).sum(),
        metadata: Metadata(source.content.metadata),
        digest: *digest.as_bytes(),
        quantisation,
        tensors,
    })
}

/// Says whether computing with this type is slow on a CPU, where another is fast.
fn is_slow(tensor_type: GgmlDType) -> bool {
    matches!(tensor_type, GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1)
}

fn cache_path(cache_dir: &Path, digest: &blake3::Hash) -> PathBuf {
    // The number changes when the same source is to give another file.
    cache_dir.join(format!("{}.q8_0.1.gguf", digest.to_hex()))
}

/// An open file whose header was checked.
struct Source {
    file: File,
    checked: Checked,
    content: Content,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "it is not a file");
        let checked = gguf_check::check(&mut BufReader::new(&file), metadata.len())?;
        file.rewind()?;
        let content = Content::read(&mut BufReader::new(&file))?;
        Ok(Self { file, checked, content })
    }

    /// Names the type that most weights have.
    fn quantisation(&self) -> String {
        let mut elements = BTreeMap::<String, usize>::new();
        for info in self.content.tensor_infos.values() {
            *elements.entry(name_of(info.ggml_dtype)).or_default() += info.shape.elem_count();
        }
        elements.into_iter().max_by_key(|(_, count)| *count).map_or_else(String::new, |(name, _)| name)
    }

    fn has_slow_tensors(&self) -> bool {
        self.content.tensor_infos.values().any(|info| is_slow(info.ggml_dtype))
    }

    fn read_all(
        &mut self,
        device: &Device,
        progress: &mut dyn FnMut(u8, &str),
    ) -> Result<HashMap<String, QTensor>> {
        self.read(progress, |content, file, name| Ok(content.tensor(file, name, device)?))
    }

    /// Reads the cached file if there is a good one, else requantises and tries to make it.
    fn read_requantised(
        &mut self,
        cached: &Path,
        progress: &mut dyn FnMut(u8, &str),
    ) -> Result<HashMap<String, QTensor>> {
        match open_cached(cached) {
            Ok(Some(mut cached)) => return cached.read_all(&Device::Cpu, progress),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(path = %cached.display(), error = %format!("{error:#}"), "Ignored a cached model");
            }
        }
        let tensors = self.read(progress, |content, file, name| {
            let tensor = content.tensor(file, name, &Device::Cpu)?;
            if !is_slow(tensor.dtype()) {
                return Ok(tensor);
            }
            Ok(QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::Q8_0)?)
        })?;
        if let Err(error) = write_cached(cached, &self.content.metadata, &tensors) {
            let error = format!("{error:#}");
            tracing::warn!(path = %cached.display(), error, "Cannot cache the model: loads will be slower");
        }
        Ok(tensors)
    }

    fn read(
        &mut self,
        progress: &mut dyn FnMut(u8, &str),
        read: impl Fn(&Content, &mut File, &str) -> Result<QTensor>,
    ) -> Result<HashMap<String, QTensor>> {
        let count = self.content.tensor_infos.len();
        let mut tensors = HashMap::with_capacity(count);
        let mut said = 0;
        for name in self.content.tensor_infos.keys() {
            let tensor = read(&self.content, &mut self.file, name)?;
            tensors.insert(name.clone(), tensor);
            let percent = 10 + u8::try_from(80 * tensors.len() / count).expect("at most 80");
            if percent != said {
                progress(percent, "reading tensors");
                said = percent;
            }
        }
        Ok(tensors)
    }
}

fn name_of(tensor_type: GgmlDType) -> String {
    let name = format!("{tensor_type:?}");
    // The library writes `Q4K` for what files are called `Q4_K`.
    name.strip_suffix('K').map_or(name.clone(), |stem| format!("{stem}_K"))
}

/// Appends zeros to the rows of a `Q8_0` matrix on a CPU where that lets the library use its fastest kernels, which
/// take rows of whole blocks of 256 only and are four to ten times as fast as the others. Whoever multiplies
/// with it must widen the other side too.
pub(crate) fn widen(matrix: QTensor) -> Result<QTensor> {
    /// What the kernels ask for.
    const COLUMNS: usize = 256;
    const ROWS: usize = 16;
    let (rows, columns) = matrix.shape().dims2()?;
    let is_worth_it = matrix.device().is_cpu() && matrix.dtype() == GgmlDType::Q8_0 && has_wide_kernels();
    if !is_worth_it || columns % COLUMNS == 0 || rows % ROWS != 0 {
        return Ok(matrix);
    }
    let block = matrix.dtype().block_size();
    let row_bytes = columns / block * matrix.dtype().type_size();
    let wide = columns.next_multiple_of(COLUMNS);
    let wide_bytes = wide / block * matrix.dtype().type_size();
    // A block of zero bytes is one of zeros.
    let mut bytes = vec![0; rows * wide_bytes];
    for (from, to) in matrix.data()?.chunks_exact(row_bytes).zip(bytes.chunks_exact_mut(wide_bytes)) {
        to[..row_bytes].copy_from_slice(from);
    }
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, matrix.dtype())?;
    Ok(QTensor::new(storage, (rows, wide))?)
}

/// Says whether this machine has the instructions of those kernels.
fn has_wide_kernels() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Opens a cached file if it exists and its digest holds.
fn open_cached(path: &Path) -> Result<Option<Source>> {
    if !path.try_exists()? {
        return Ok(None);
    }
    let mut source = Source::open(path)?;
    let length = source.file.metadata()?.len();
    let body = length.checked_sub(TRAILER_BYTES).context("it is too short")?;
    let found = digest(&mut source.file, Some(body))?;
    let mut trailer = [0; TRAILER_BYTES as usize];
    source.file.seek(SeekFrom::Start(body))?;
    source.file.read_exact(&mut trailer)?;
    ensure!(found == trailer, "its digest does not hold");
    Ok(Some(source))
}

/// Writes a file beside its place and moves it there, so that none is ever half there.
fn write_cached(
    path: &Path,
    metadata: &HashMap<String, Value>,
    tensors: &HashMap<String, QTensor>,
) -> Result<()> {
    let folder = path.parent().context("the cache folder has no name")?;
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension(format!("{}.part", std::process::id()));
    let written = write_with_trailer(&temporary, metadata, tensors);
    let moved = written.and_then(|()| Ok(fs::rename(&temporary, path)?));
    if moved.is_err() {
        // What cannot be removed will be overwritten or is not there.
        let _ = fs::remove_file(&temporary);
    }
    moved
}

fn write_with_trailer(
    path: &Path,
    metadata: &HashMap<String, Value>,
    tensors: &HashMap<String, QTensor>,
) -> Result<()> {
    // The library aligns to the default, whatever the source did.
    let metadata: BTreeMap<_, _> = metadata.iter().filter(|(key, _)| *key != "general.alignment").collect();
    let metadata: Vec<_> = metadata.into_iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: BTreeMap<_, _> = tensors.iter().collect();
    let tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut output =
        BufWriter::new(File::options().read(true).write(true).create(true).truncate(true).open(path)?);
    gguf_file::write(&mut output, &metadata, &tensors)?;
    let mut file = output.into_inner()?;
    let digest = digest(&mut file, None)?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(digest.as_bytes())?;
    Ok(file.sync_all()?)
}

/// Digests a file from its beginning, whole or up to a length.
fn digest(file: &mut File, length: Option<u64>) -> Result<blake3::Hash> {
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(length.unwrap_or(u64::MAX)))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use candle_core::Module;
    use candle_core::Tensor;
    use candle_core::quantized::QMatMul;

    use super::*;

    #[test]
    fn a_widened_matrix_gives_the_same_products() {
        let numbers = |count: usize| (0..count).map(|at| ((at * 7919 % 1013) as f32 - 506.0) / 300.0);
        let tensor = |rows: usize, columns: usize| {
            Tensor::from_vec(numbers(rows * columns).collect::<Vec<_>>(), (rows, columns), &Device::Cpu)
                .expect("the shape fits")
        };
        for (rows, columns) in [(64, 576), (16, 512), (16, 32), (17, 576)] {
            let matrix = QTensor::quantize(&tensor(rows, columns), GgmlDType::Q8_0).expect("whole blocks");
            let exact = matrix.dequantize(&Device::Cpu).expect("on the CPU");
            let wide = widen(matrix).expect("any shape is taken");
            let width = wide.shape().dims()[1];
            assert!(width == columns || width.is_multiple_of(256));
            let input = tensor(3, columns);
            let wide_input = input.pad_with_zeros(1, 0, width - columns).expect("it is wider");
            let found =
                QMatMul::from_qtensor(wide).and_then(|wide| wide.forward(&wide_input)).expect("it fits");
            let expected = exact.t().and_then(|exact| input.matmul(&exact)).expect("it fits");
            let largest = |tensor: &Tensor| tensor.abs()?.max_all()?.to_scalar::<f32>();
            let error = (found - &expected).and_then(|error| largest(&error)).expect("numbers");
            // The kernels round the input to eight bits.
            assert!(error < 0.02 * largest(&expected).expect("numbers"), "{rows} x {columns}: {error}");
        }
    }
}
