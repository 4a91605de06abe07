//! ringlog

pub mod rt;
