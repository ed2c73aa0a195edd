//! edge-min
fn main() {}
