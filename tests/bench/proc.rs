//! What `/proc` says about a process: processor time of all its threads, and resident memory.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};

/// Kernel clock ticks a second as `/proc/PID/stat` counts them; fixed by the kernel's interface on Linux.
const TICKS_PER_S: f64 = 100.0;

/// Processor time used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    /// Run time of all living threads, from the scheduler: exact, but threads that ended are missing.
    pub(crate) run_us: f64,
    /// User and system time of the process: coarse, but complete. The cross-check.
    pub(crate) ticks_us: f64,
}

impl Cpu {
    /// Reads both counters of process `pid`.
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let mut run_ns = 0_u64;
        for task in
            fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?
        {
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                run_ns += text
                    .split(' ')
                    .next()
                    .and_then(|first| first.parse::<u64>().ok())
                    .context("schedstat")?;
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit_once(") ").context("stat")?.1;
        // Fields 14 and 15 of proc(5), counted from the state, which is field 3.
        let fields: Vec<_> = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .map(str::parse::<f64>)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            run_us: run_ns as f64 / 1e3,
            ticks_us: fields.iter().sum::<f64>() / TICKS_PER_S * 1e6,
        })
    }

    /// Time used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            run_us: self.run_us - earlier.run_us,
            ticks_us: self.ticks_us - earlier.ticks_us,
        }
    }
}

/// Run time of the living threads of process `pid` so far, microseconds, by their names without numbers.
pub(crate) fn run_by_thread(pid: u32) -> Result<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?;
    for task in tasks {
        let folder = task?.path();
        let read = |file: &str| fs::read_to_string(folder.join(file));
        // A thread may end between the listing and the reading.
        let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        let run = stat.split(' ').next().and_then(|first| first.parse::<u64>().ok());
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit());
        *all.entry(name.to_owned()).or_default() += run.context("schedstat")? as f64 / 1e3;
    }
    Ok(all)
}

/// Resident memory of process `pid` in KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counters_see_this_process_work() {
        let start = Cpu::read(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Cpu::read(std::process::id()).unwrap().since(start).ticks_us < 50_000.0 {
            sum = (0..100_000).fold(sum, u64::wrapping_add);
        }
        std::hint::black_box(sum);
        assert!(Cpu::read(std::process::id()).unwrap().since(start).run_us > 25_000.0);
        assert!(resident_kib(std::process::id()).unwrap() > 100.0);
    }
}
