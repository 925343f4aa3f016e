//! The argument `--device`: parsing it, and opening the device.

use crate::device::Choice;
use crate::device::collective::Launched;
use crate::device::gpu::card::Card;
use crate::device::gpu::cuda::{self, Cuda};
use crate::device::gpu::emu::Emu;
use crate::error::{Error, Result};
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
    Emu,
}

/// Parses the value of `--device`.
pub fn parse(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        "emu" => Ok(DeviceChoice::Emu),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => Ok(DeviceChoice::Cuda(index)),
            Some(Err(_)) | None => Err("expected auto, cpu, cuda, cuda:N or emu".into()),
        },
    }
}

/// Parses the short name of a card, such as `h200`.
pub fn parse_card(text: &str) -> Result<&'static Card, String> {
    let known = || Card::names().collect::<Vec<_>>().join(", ");
    Card::named(text).ok_or_else(|| format!("expected one of: {}", known()))
}

/// Parses a range of steps, `FROM..TO` without `TO`.
pub fn parse_steps(text: &str) -> Result<Range<u64>, String> {
    let steps = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    steps.filter(|s: &Range<u64>| s.start < s.end).ok_or_else(|| "expected FROM..TO, such as 20..25".into())
}

impl DeviceChoice {
    /// The device of one of several ranks: each rank of a machine has a card of its own, the named one or the next ones. A
    /// launcher that shows each rank one card only (`CUDA_VISIBLE_DEVICES`) has chosen it. `Auto` is the CPU where there are
    /// fewer cards than ranks.
    pub fn of_rank(self, launched: Option<Launched>) -> DeviceChoice {
        let Some(launched) = launched.filter(|l| l.size > 1) else { return self };
        let shown = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        let has_own = !shown.is_empty() && !shown.contains(',');
        let (place, needed) = if has_own { (0, 1) } else { (launched.local_rank, launched.local_size) };
        let is_fit = |d: &&cuda::Found| d.capability >= cuda::LEAST_CAPABILITY;
        let has_cards =
            || cuda::devices().is_ok_and(|(_, found)| found.iter().filter(is_fit).count() >= needed);
        match self {
            DeviceChoice::Cuda(first) => DeviceChoice::Cuda(first + place),
            DeviceChoice::Auto if has_cards() => DeviceChoice::Cuda(place),
            DeviceChoice::Auto => DeviceChoice::Cpu,
            DeviceChoice::Cpu | DeviceChoice::Emu => self,
        }
    }

    /// Checks that the device works; returns it with a line that describes it. `Auto` falls back to the CPU.
    ///
    /// Errors: the device is not available; `DFKA_MATMUL` asks for a library that it does not have.
    pub fn open(self) -> Result<(Choice, String)> {
        let is_library_asked_for = cuda::is_cublaslt_asked_for()?;
        match self {
            DeviceChoice::Auto if is_library_asked_for => {
                let (index, name) = automatic()?;
                Ok((Choice::Cuda(index), format!("device: cuda:{index}, {name} (auto)")))
            }
            DeviceChoice::Cpu | DeviceChoice::Emu if is_library_asked_for => Err(Error::Usage(
                "DFKA_MATMUL=cublaslt needs a CUDA device: --device cuda, or unset the variable".into(),
            )),
            DeviceChoice::Auto => Ok(match automatic() {
                Ok((index, name)) => (Choice::Cuda(index), format!("device: cuda:{index}, {name} (auto)")),
                Err(e) => (Choice::Cpu, format!("device: cpu (auto: {e})")),
            }),
            DeviceChoice::Cpu => Ok((Choice::Cpu, "device: cpu".into())),
            DeviceChoice::Cuda(index) => {
                let choice = Choice::Cuda(index);
                let named = |why| format!("--device cuda:{index}: {why}; or use --device cpu");
                let name = choice.try_kernel().map_err(|e| match e {
                    Error::OutOfMemory(why) => Error::OutOfMemory(named(why)),
                    e => Error::NoDevice(named(e.to_string())),
                })?;
                Ok((choice, format!("device: cuda:{index}, {}", name.unwrap_or_default())))
            }
            DeviceChoice::Emu => {
                let name = Emu::open(0)?.name();
                Ok((
                    Choice::Emu,
                    format!("device: {name} (for testing kernels; about 100 times slower than the CPU)"),
                ))
            }
        }
    }
}

/// The name of a device for people; a CUDA device that cannot be opened is named by its index alone.
pub fn name(choice: Choice) -> String {
    match choice {
        Choice::Cpu => "cpu".into(),
        Choice::Emu => "emu".into(),
        Choice::Cuda(index) => {
            let card = Cuda::open(index).map_or(String::new(), |device| format!(", {}", device.name()));
            format!("cuda:{index}{card}")
        }
    }
}

/// The first CUDA device that can run the kernels, which has run one: its index and name.
fn automatic() -> Result<(usize, String)> {
    let (_, found) = cuda::devices()?;
    let fit = found.iter().position(|d| d.capability >= cuda::LEAST_CAPABILITY);
    let index = fit.ok_or_else(|| {
        Error::NoDevice(format!("none of {} CUDA devices has compute capability 8.0 or higher", found.len()))
    })?;
    Ok((index, Choice::Cuda(index).try_kernel()?.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::collective::Launcher;

    #[test]
    fn device_names_parse_and_other_texts_do_not() {
        assert_eq!(parse("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(parse_steps("20..25"), Ok(20..25));
        assert!(["", "20", "..", "5..5", "9..2"].iter().all(|wrong| parse_steps(wrong).is_err()));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_rank_of_a_machine_has_a_card_of_its_own() {
        let rank = Launched { rank: 5, size: 8, local_rank: 1, local_size: 4, launcher: Launcher::Torchrun };
        assert_eq!(DeviceChoice::Cuda(2).of_rank(Some(rank)), DeviceChoice::Cuda(3));
        assert_eq!(DeviceChoice::Cuda(2).of_rank(None), DeviceChoice::Cuda(2));
        assert_eq!(DeviceChoice::Emu.of_rank(Some(rank)), DeviceChoice::Emu);
    }

    #[test]
    fn a_missing_device_is_an_error_that_names_it() {
        assert!(DeviceChoice::Auto.open().is_ok());
        assert_eq!(DeviceChoice::Cpu.open().unwrap().0, Choice::Cpu);
        // No machine has a thousand devices, and most that run this have no driver.
        let e = DeviceChoice::Cuda(1000).open().unwrap_err();
        assert_eq!(e.exit_code(), 5);
        assert!(e.to_string().contains("cuda:1000"), "{e}");
    }
}
