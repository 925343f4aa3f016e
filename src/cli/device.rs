//! `--device`: what was asked for, and whether this version has it.

use super::doctor;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
    Emu,
}

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

impl DeviceChoice {
    /// The device in words, or why there is none.
    pub fn open(self) -> Result<&'static str> {
        match self {
            DeviceChoice::Auto => Ok("device: cpu (auto: the only one this version has)"),
            DeviceChoice::Cpu => Ok("device: cpu"),
            DeviceChoice::Cuda(index) => Err(Error::NoDevice(format!(
                "--device cuda:{index}: this version has no CUDA backend yet (NVIDIA's driver library here: {}); \
                 use --device cpu",
                doctor::find("libcuda.so").in_words()
            ))),
            DeviceChoice::Emu => Err(Error::NoDevice(
                "--device emu: this version has no kernel emulator yet; use --device cpu".into(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_others_do_not() {
        assert_eq!(parse("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_cpu_opens() {
        assert!(DeviceChoice::Auto.open().is_ok() && DeviceChoice::Cpu.open().is_ok());
        for absent in [DeviceChoice::Cuda(1), DeviceChoice::Emu] {
            assert_eq!(absent.open().unwrap_err().exit_code(), 5);
        }
    }
}
