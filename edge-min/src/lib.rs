//! edge-min
