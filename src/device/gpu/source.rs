//! Reads what a kernel source declares from its text: the build script does so for the table of kernels.
//!
//! A kernel's parameter list is written once, in CUDA C++. Because it is read here, a launch can check the
//! number and the kinds of its arguments without a second copy of the list in Rust.

/// What one parameter of a kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter<Name = String> {
    Pointer,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    /// A structure by value, by its name.
    Structure(Name),
    /// The tensor maps of a launch, by value: `MAPS_PARAM`.
    TensorMaps,
    /// `Group<S>` by value: up to eight structures `S`, which have so many pointers each. Bit i of the last number is set
    /// where the kernel may write through pointer i: its type is not `const`.
    Group(Name, usize, u32),
}

/// One launchable kernel of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// As the `INSTANCE` line spells it: `max_pool_fwd<float>`.
    pub instance: String,
    pub parameters: Vec<Parameter>,
    /// Most threads of a block.
    pub threads: u32,
    /// An `INSTANCE_90A` line: there is machine code for sm_90a only.
    pub needs_90a: bool,
}

/// Whether a kernel can be compiled for a target such as `sm_90a`.
pub fn runs_on(needs_90a: bool, target: &str) -> bool {
    !needs_90a || target == "sm_90a"
}

/// The kernels that `source` declares by `INSTANCE(...)` and `INSTANCE_90A(...)`. The structures of groups
/// may be in `headers`, the text of what it includes.
///
/// Errors: an instance of a kernel that the file does not define; a parameter of a type that no launch can
/// pass.
pub fn kernels(source: &str, headers: &str) -> Result<Vec<Declared>, String> {
    let code = without_comments(source);
    let structures = [&code, &without_comments(headers)].map(String::as_str).join("\n");
    let mut found = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let text = text.trim_start();
        let needs_90a = text.starts_with("INSTANCE_90A(");
        let rest = text.strip_prefix("INSTANCE(").or_else(|| text.strip_prefix("INSTANCE_90A("));
        let Some(rest) = rest else { continue };
        let end = rest.rfind(')').ok_or_else(|| format!("line {}: INSTANCE without its `)`", line + 1))?;
        let instance = rest[..end].trim().to_string();
        let name = instance.split('<').next().unwrap_or_default().trim();
        let (threads, parameters) = definition(&code, &structures, name)
            .map_err(|e| format!("line {}: INSTANCE({instance}): {e}", line + 1))?;
        found.push(Declared { instance, parameters, threads, needs_90a });
    }
    Ok(found)
}

/// The launch bound and the parameters of `KERNEL(threads) name(...)`, or of
/// `KERNEL(threads, blocks) name(...)`.
fn definition(code: &str, structures: &str, name: &str) -> Result<(u32, Vec<Parameter>), String> {
    for (at, _) in code.match_indices("KERNEL(") {
        let rest = &code[at + "KERNEL(".len()..];
        let Some((bound, rest)) = rest.split_once(')') else { continue };
        let Some(rest) = rest.trim_start().strip_prefix(name) else { continue };
        let Some(rest) = rest.trim_start().strip_prefix('(') else { continue };
        let most = bound.split(',').next().unwrap_or_default().trim();
        let threads = most.parse().map_err(|_| format!("KERNEL({bound}): expected a number"))?;
        let (list, _) = rest.split_once(')').ok_or("a parameter list without its `)`")?;
        let parameters = split(list).iter().map(|p| parameter(p, structures)).collect::<Result<_, _>>()?;
        return Ok((threads, parameters));
    }
    Err(format!("no `KERNEL(threads) {name}(...)` in this file"))
}

/// Cuts a parameter list at its outer commas.
fn split(list: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        match (c, parts.last_mut()) {
            (',', _) if depth == 0 => parts.push(String::new()),
            (_, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    parts.retain(|p| !p.trim().is_empty());
    parts
}

fn parameter(text: &str, structures: &str) -> Result<Parameter, String> {
    if text.contains('*') {
        return Ok(Parameter::Pointer);
    }
    if let Some(group) = text.trim().trim_start_matches("IN_PLACE ").strip_prefix("Group<") {
        let name: String = group.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let (pointers, written) = pointers(structures, &name)?;
        return Ok(Parameter::Group(name, pointers, written));
    }
    let mut words = text.split_whitespace().filter(|w| *w != "const");
    let kind = match words.next().unwrap_or_default() {
        "int" => Parameter::I32,
        "u32" => Parameter::U32,
        "i64" => Parameter::I64,
        "u64" => Parameter::U64,
        "float" => Parameter::F32,
        "double" => Parameter::F64,
        "MAPS_PARAM" => Parameter::TensorMaps,
        name if name.len() > 1 && name.starts_with(|c: char| c.is_ascii_uppercase()) => {
            Parameter::Structure(name.into())
        }
        other => return Err(format!("parameter `{}`: a launch cannot pass a {other}", text.trim())),
    };
    Ok(kind)
}

/// The number of fields of `struct name`, all of which must be pointers, and a bit for each that is not `const`.
fn pointers(code: &str, name: &str) -> Result<(usize, u32), String> {
    let wrong = |what: &str| format!("Group<{name}>: {what}");
    let (_, rest) =
        code.split_once(&format!("struct {name} {{")).ok_or_else(|| wrong("no such structure"))?;
    let (fields, _) = rest.split_once('}').ok_or_else(|| wrong("a structure without its `}`"))?;
    let fields: Vec<&str> = fields.split(';').filter(|f| !f.trim().is_empty()).collect();
    match fields.iter().find(|f| f.matches('*').count() != 1) {
        Some(f) => Err(wrong(&format!("expected one pointer a field, found `{}`", f.trim()))),
        None => {
            let is_const = |field: &str| field.split_whitespace().any(|word| word == "const");
            let written = fields.iter().enumerate().filter(|(_, f)| !is_const(f)).map(|(i, _)| 1u32 << i);
            Ok((fields.len(), written.sum()))
        }
    }
}

/// The text without `//` comments, with the same lines.
pub fn without_comments(source: &str) -> String {
    source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_templates_bounds_and_parameters() {
        let source = "template <class T>\nKERNEL(128) f(T* RESTRICT y, const Pack<T, 8>* x, // rows\n  \
                      int n, const u64 seed, Conv2dDims d) {}\n\
                      // INSTANCE(g)\nINSTANCE(f<float>)\nINSTANCE(f<bf16>)\n";
        let found = kernels(source, "").unwrap();
        let structure = Parameter::Structure("Conv2dDims".into());
        let expected = [Parameter::Pointer, Parameter::Pointer, Parameter::I32, Parameter::U64, structure];
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].instance.as_str(), found[1].threads), ("f<bf16>", 128));
        assert_eq!(found[0].parameters, expected);
    }

    #[test]
    fn reads_kernels_that_only_sm_90a_has() {
        let source = "KERNEL(384, 1) f(float* y, MAPS_PARAM maps) {}\nINSTANCE_90A(f)\n";
        let f = kernels(source, "").unwrap().remove(0);
        assert_eq!((f.instance.as_str(), f.threads, f.needs_90a), ("f", 384, true));
        assert_eq!(f.parameters, [Parameter::Pointer, Parameter::TensorMaps]);
        assert!(runs_on(true, "sm_90a") && !runs_on(true, "sm_80") && runs_on(false, "sm_80"));
    }

    #[test]
    fn counts_the_pointers_of_a_group() {
        let source = "template <class T> struct Io {\n  T* y; // [n]\n  const T* x;\n};\ntemplate <class T>\n\
                      KERNEL(128) f(Group<Io<T>> members, int n) {}\nINSTANCE(f<float>)\n";
        assert_eq!(
            kernels(source, "").unwrap()[0].parameters,
            [Parameter::Group("Io".into(), 2, 0b01), Parameter::I32]
        );
        let (header, rest) = source.split_once("};").unwrap();
        assert_eq!(kernels(rest, &format!("{header}}};")), kernels(source, ""));
        assert_eq!(kernels(&source.replace("(Group", "(IN_PLACE Group"), ""), kernels(source, ""));
        assert!(kernels(&source.replace("T* y", "T y"), "").unwrap_err().contains("found `T y`"));
        assert!(
            kernels(&source.replace("Io {", "Oi {"), "")
                .unwrap_err()
                .contains("Group<Io>: no such structure")
        );
    }

    #[test]
    fn refuses_what_no_launch_can_pass() {
        let by_value = "template <class T> KERNEL(32) f(T x) {}\nINSTANCE(f<float>)";
        assert!(kernels(by_value, "").unwrap_err().contains("cannot pass a T"));
        assert!(kernels("INSTANCE(g)", "").unwrap_err().contains("no `KERNEL(threads) g(...)`"));
    }
}
