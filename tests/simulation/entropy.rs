//! Where a simulated thread's randomness comes from: its seed, instead of the kernel.
//!
//! The consensus library draws its election timeouts from the thread's generator, and the standard library seeds its hash maps; both
//! ask the C library. This file takes the C library's two functions' places in this test binary and answers pinned threads from a
//! counter; every other thread gets the kernel's bytes.
#![expect(
    unsafe_code,
    reason = "standing in for functions of the C library is the only way to seed generators that take no seed"
)]

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::fs::File;
use std::io::Read as _;

thread_local! {
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on this thread's randomness follows from `seed`.
pub(crate) fn pin(seed: u64) {
    STREAM.set(Some(seed));
}

/// The next number of a splitmix64 stream.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fill(bytes: &mut [u8]) -> bool {
    if let Some(mut state) = STREAM.get() {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
        }
        STREAM.set(Some(state));
        return true;
    }
    File::open("/dev/urandom")
        .and_then(|mut kernel| kernel.read_exact(bytes))
        .is_ok()
}

/// Stands in for the C library's function of this name.
///
/// # Safety
/// `buffer` is valid for `length` bytes, as for the original.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller gives `length` writable bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    if fill(bytes) { length.cast_signed() } else { -1 }
}

/// Stands in for the C library's function of this name.
///
/// # Safety
/// `buffer` is valid for `length` bytes, as for the original.
#[unsafe(no_mangle)]
unsafe extern "C" fn getentropy(buffer: *mut c_void, length: usize) -> c_int {
    // SAFETY: passed on as it came.
    if unsafe { getrandom(buffer, length, 0) } < 0 {
        -1
    } else {
        0
    }
}
