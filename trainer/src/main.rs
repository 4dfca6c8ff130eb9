//! sorcen
fn main() {}
