//! The parts that ringlog's side-by-side benchmarks are made of.
//!
//! Each benchmark is a binary under `src/bin`. What only one of them needs sits in a folder of its
//! own (`engines` for `echo`, `src/bin/stores` for `stores`); what they share sits beside this file.
//!
//! | module       | holds                                                              |
//! |--------------|--------------------------------------------------------------------|
//! | [`affinity`] | which CPU the server and the load generator are pinned to          |
//! | [`cpu_time`] | how long the server and the generator ran, and waited for a CPU    |
//! | [`engines`]  | the echo servers, one per runtime                                  |
//! | [`limits`]   | the open-files limit                                               |
//! | [`load`]     | the closed-loop load generator                                     |
//! | [`report`]   | the table and the JSON document                                    |
//! | [`server`]   | a server as a child process: both the parent's and the child's side |
//! | [`stats`]    | what one measurement says, and medians over rounds                 |

pub mod affinity;
pub mod cpu_time;
pub mod engines;
pub mod limits;
pub mod load;
pub mod report;
pub mod server;
pub mod stats;
