//! A picture of 64×64 pixels becomes 64 tokens of 9 bits, and a picture again.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{
    data, hash, info,
    picture::{self, show_ids, Picture, SIDE},
    CONFIG, TOKENS,
};
use sorcen_runtime::{
    tokens::{pack_row, row_bytes},
    Error,
};

sorcen_firmware::main!(tokenize, memory: picture::BYTES);

fn tokenize(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?;
    let codebook = data::codebook(&model)?;
    let mut ids = [0; TOKENS];
    codebook.encode(data::photo(), SIDE, SIDE, &mut ids)?;
    info!("{} bytes of pixels are {} tokens, hash {:016x}", picture::BYTES, TOKENS, hash::of_ids(&ids));
    show_ids(&ids);
    let mut row = [0; row_bytes(TOKENS, CONFIG.token_bits())];
    pack_row(&ids, CONFIG.token_bits(), &mut row)?;
    info!("stored in {} bytes, hash {:016x}", row.len(), hash::of_bytes(row));
    let picture = Picture::decode(&codebook, &ids, memory)?;
    let squares = picture.rgb().iter().zip(data::photo()).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2));
    info!("and back, mean squared error {} of 65025", squares.sum::<u32>() / picture::BYTES as u32);
    picture.show();
    picture.save(c"tokenize.ppm");
    Ok(())
}
