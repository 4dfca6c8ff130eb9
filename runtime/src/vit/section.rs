//! Writing a section: header, tensor table, numbers.

use alloc::vec::Vec;

use super::{head, weights_start, VitConfig, VitParam};
use crate::{
    error::Error,
    pack::{Kind, TensorData, ALIGN},
};

/// The section of a tokenizer, for [`Writer::vit`](crate::pack::Writer::vit). `weight` hands out each weight in the
/// order of [`VitParam::all`].
///
/// # Errors
/// [`Error::Config`], and [`Error::Tensor`] where a weight does not have its shape or cannot have its precision.
pub fn section<'a>(
    config: &VitConfig,
    mut weight: impl FnMut(VitParam, &mut dyn FnMut(TensorData<'_>) -> Result<(), Error>) -> Result<(), Error> + 'a,
) -> Result<Vec<u8>, Error> {
    config.validate()?;
    let VitConfig { grid, patch, codes, code_dim, embed_dim, depth, num_heads, decoder_depth, mlp_ratio } = *config;
    let fields = [grid, patch, codes, code_dim, embed_dim, depth, num_heads, decoder_depth, mlp_ratio];
    let mut bytes: Vec<u8> = fields.iter().flat_map(|&field| (field as u32).to_le_bytes()).collect();
    bytes.resize(head::BYTES, 0);
    let mut weights = Vec::new();
    for (index, param) in VitParam::all(config).enumerate() {
        let shape = param.shape(config).matrix();
        weight(param, &mut |data| {
            let tensor = data.check(index, shape, Kind { is_matrix: param.is_matrix(), is_optional: false })?;
            let entry = tensor.entry(shape, |part| {
                let offset = weights.len() as u64;
                weights.extend_from_slice(part);
                weights.resize(weights.len().next_multiple_of(ALIGN), 0);
                Ok::<_, Error>(offset)
            })?;
            bytes.extend_from_slice(&entry);
            Ok(())
        })?;
    }
    bytes.resize(weights_start(config), 0);
    bytes.extend_from_slice(&weights);
    Ok(bytes)
}
