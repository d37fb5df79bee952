//! Raw bindings to the system's libdpdk, made by bindgen; inline functions come through generated C wrappers.
//!
//! Only what `build.rs` lists is bound. Everything here is `unsafe`; the safe API is `vswitch-common`.

#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_imports,
    dead_code
)]
#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    unsafe_op_in_unsafe_fn
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
