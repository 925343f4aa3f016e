//! Kernel parameters against the operands that a launch passes for them.
//!
//! A launch passes its arguments by position, and every pointer has the same kind: a swapped pair is only
//! seen in the results. Here each pointer's declaration in the kernel's source is held against the operand: a
//! parameter that the kernel may write gets no operand that is only read, and parameters named x, y, dx and
//! dy get what these names say. The fields of a group's structure count as parameters. Tables are left out, because
//! their rows have no declaration.

use crate::device::Slot;
use crate::device::gpu::launch::{KernelArg, Launch};
use crate::device::gpu::{HEADERS, Kernel, MODULES};

/// One parameter of a kernel as its source declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Declared {
    name: String,
    /// Whether it is a pointer to what the kernel may write.
    writes: bool,
}

/// Parameter names that mean the same in every kernel, and how the label of their operand begins.
const NAMES: [(&str, &str); 4] =
    [("x", "input"), ("y", "output"), ("dx", "gradient of input"), ("dy", "gradient of output")];

/// Describes the first pointer of a launch that does not fit its parameter. `label` names a slot's operand,
/// `None` for a slot of no operand; `read_only` are the slots that the launch may not write.
pub fn first_misplaced(
    launch: &Launch,
    label: impl Fn(Slot) -> Option<String>,
    read_only: &[Slot],
) -> Option<String> {
    // What a library does has no source.
    let declared = if launch.library.is_some() { Vec::new() } else { declared(launch.kernel) };
    let all = launch.args.iter().zip(declared).enumerate().flat_map(|(i, (arg, parameter))| match arg {
        KernelArg::Group(structure, members) => {
            let fields = fields(launch.kernel, structure);
            let of = |member: &Vec<KernelArg>| member.iter().cloned().zip(fields.clone()).collect::<Vec<_>>();
            members.iter().flat_map(of).map(|pair| (i, pair)).collect()
        }
        _ => vec![(i, (arg.clone(), parameter))],
    });
    all.into_iter().find_map(|(i, (arg, parameter))| {
        let KernelArg::Slot(slot) = arg else { return None };
        let label = label(slot)?;
        let Declared { name, writes } = &parameter;
        let problem = if *writes && read_only.contains(&slot) {
            "may be written"
        } else {
            let (_, expected) = NAMES.iter().find(|(n, _)| n == name)?;
            // A launch may leave an intermediate result in scratch memory.
            if label.starts_with(expected) || label.contains("scratch") {
                return None;
            }
            "means another operand"
        };
        Some(format!(
            "kernel {}, argument {i}: the parameter `{name}` {problem}, the launch passes {label}",
            launch.kernel.name
        ))
    })
}

/// The parameters in the source of the kernel's module.
fn declared(kernel: &Kernel) -> Vec<Declared> {
    let module = &MODULES[kernel.module];
    let name = kernel.name.split('<').next().unwrap_or_default();
    let lines = module.source.lines().map(|l| l.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    let list = code.split("KERNEL(").find_map(|text| {
        let (_, text) = text.split_once(')')?;
        let list = text.trim_start().strip_prefix(name)?.trim_start().strip_prefix('(')?;
        list.split_once(')').map(|(list, _)| list)
    });
    parameters(list.unwrap_or_else(|| panic!("{}: no definition in {}.cu", kernel.name, module.stem)))
}

/// The fields of a group's structure, in the kernel's module or in a header.
fn fields(kernel: &Kernel, structure: &str) -> Vec<Declared> {
    let sources = [MODULES[kernel.module].source].into_iter().chain(HEADERS.iter().map(|(_, text)| *text));
    let body = sources.into_iter().find_map(|text| {
        let (_, rest) = text.split_once(&format!("struct {structure} {{"))?;
        rest.split_once("};").map(|(body, _)| body)
    });
    let body = body.unwrap_or_else(|| panic!("{}: no structure {structure}", kernel.name));
    let lines = body.lines().map(|l| l.split("//").next().unwrap_or_default());
    parameters(&lines.collect::<String>().replace(';', ","))
        .into_iter()
        .filter(|f| !f.name.is_empty())
        .collect()
}

/// A parameter list, split at its outer commas.
fn parameters(list: &str) -> Vec<Declared> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let declared = |part: &String| Declared {
        name: part.rsplit(|c: char| c.is_whitespace() || c == '*').next().unwrap_or_default().into(),
        writes: part.contains('*') && !part.starts_with("const "),
    };
    parts.iter().map(|p| p.trim().to_string()).map(|p| declared(&p)).collect()
}

#[test]
fn reads_names_and_constness() {
    let found = parameters("T* RESTRICT y,\n  const Pack<T, 8>* x, u8 *mask, i64 elements, MAPS_PARAM maps");
    let expected = [("y", true), ("x", false), ("mask", true), ("elements", false), ("maps", false)];
    assert_eq!(found, expected.map(|(name, writes)| Declared { name: name.into(), writes }));
}

#[test]
fn reads_the_fields_of_a_groups_structure() {
    let kernel = Kernel::find("batch_norm_bwd_finish").unwrap();
    let expected = [("means", true), ("dgamma", true), ("dbeta", true), ("parts", false)];
    let declared = |(name, writes): (&str, bool)| Declared { name: name.into(), writes };
    assert_eq!(fields(kernel, "BatchNormBackwardFold"), expected.map(declared));
    // That of a template, in a header.
    let kernel = Kernel::find("conv2d_fwd<float, 64, 64>").unwrap();
    let found = fields(kernel, "Conv2dForward");
    assert_eq!((found.len(), &found[0], &found[3]), (8, &declared(("y", true)), &declared(("x", false))));
}
