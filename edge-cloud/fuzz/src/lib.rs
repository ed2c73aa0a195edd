//! The manifest reader of edge-cloud alone, and its reader of the ends of record files; the files
//! are links.
pub mod manifest;
pub mod records {
    //! Of `edge-cloud/src/records`.
    pub mod ledger;
    pub mod loss;
    pub mod mark;
    pub mod plan;
    pub mod stream;
}
