//! Moves what was loaded into huge pages, where Linux has them: decoding reads all weights for each token, and is a sixth
//! faster if the processor need not look up every 4 KiB of them.
//!
//! glibc can be told to ask for them (`glibc.malloc.hugetlb`), but not be relied on: 2.36 misreads the kernel's setting in
//! a third of all starts, and asks for nothing where threads other than the first allocate.

/// Moves the memory of this process into huge pages, as far as the kernel can; changes no contents.
///
/// To be called after loading: what is allocated later, such as a job's cache, keeps small pages, so that it takes no
/// more memory than it fills.
#[cfg(target_os = "linux")]
pub(crate) fn gather() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(huge_part) {
        #[expect(unsafe_code, reason = "there is no safe interface")]
        // SAFETY: the advice moves pages and changes neither addresses nor contents; the kernel checks the range.
        let moved = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_COLLAPSE) };
        if moved != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(length, %error, "Kept a part of the memory in small pages");
        }
    }
}

/// Does nothing: other systems choose the size of pages themselves.
#[cfg(not(target_os = "linux"))]
pub(crate) fn gather() {}

/// Returns start and length of the whole huge pages in a line of `/proc/self/maps`, if it is of memory that was allocated.
#[cfg(target_os = "linux")]
fn huge_part(line: &str) -> Option<(usize, usize)> {
    /// The size on most machines; where it is another, the kernel takes what fits.
    const HUGE: usize = 2 << 20;
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let name = fields.nth(3).unwrap_or_default();
    if permissions != "rw-p" || !(name.is_empty() || name == "[heap]") {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?.checked_next_multiple_of(HUGE)?;
    let end = usize::from_str_radix(end, 16).ok()? / HUGE * HUGE;
    (start < end).then(|| (start, end - start))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_allocated_memory_is_moved_and_only_whole_pages_of_it() {
        let part = |line: &str| huge_part(line);

        assert_eq!(
            part("7f0000100000-7f0000700000 rw-p 00000000 00:00 0 "),
            Some((0x7f00_0020_0000, 4 << 20))
        );
        assert_eq!(
            part("560000000000-560000200000 rw-p 00000000 00:00 0   [heap]"),
            Some((0x5600_0000_0000, 2 << 20))
        );
        assert_eq!(part("7f0000100000-7f0000300000 rw-p 00000000 00:00 0 "), None, "no whole page");
        assert_eq!(part("7f0000000000-7f0000400000 r--p 00000000 00:00 0 "), None);
        assert_eq!(part("7f0000000000-7f0000400000 rw-p 00000000 fe:00 12 /lib/some.so"), None);
        assert_eq!(part("7ffe00000000-7ffe00400000 rw-p 00000000 00:00 0  [stack]"), None);
        assert_eq!(part("nonsense"), None);
    }

    #[test]
    fn what_was_allocated_stays_as_it_was() {
        let numbers: Vec<u32> = (0..4 << 20).collect();

        gather();

        assert!((0..).zip(&numbers).all(|(expected, number)| expected == *number));
    }
}
