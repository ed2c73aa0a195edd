//! memtests
