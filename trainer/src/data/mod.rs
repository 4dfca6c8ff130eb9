//! Data in and out: the token dataset (a folder of numpy files) and images to tokenise.

mod classes;
mod dataset;
mod digest;
mod error;
mod folder;
mod gather;
mod idx;
mod images;
mod listing;
mod names;
pub(crate) mod npy;
mod shards;
mod table;
mod writer;

pub use classes::expect_same_classes;
pub use dataset::{Part, TokenDataset, TokenStream, VQGAN};
pub use digest::sha256_hex;
pub use error::DataError;
pub use gather::{gather, in_order};
pub use idx::Idx;
pub use images::{ImageQuery, ImageSet, UNLABELLED};
pub use names::{class_name, read_class_names};
pub use table::Table;
pub use writer::{StreamSpec, TokenDatasetWriter};
