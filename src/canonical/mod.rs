//! The pieces that canonical requests share. Sets of characters are never shared: every vendor has its own.

pub mod headers;
pub mod percent;
pub mod query;
pub mod sorted;
pub mod time;
