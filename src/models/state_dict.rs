//! Finds the network in a state dict. Training programs save it under a prefix (`module.`, `model.`, `net.`),
//! name its head in several ways (`fc.1` behind a dropout, timm's `head.fc`), and save other tensors beside
//! it: a loss's `pos_weight`, a metric's thresholds, a counter.

use super::torchvision::Head;
use crate::error::{Error, Result};
use crate::weights::Tensors;
use std::collections::BTreeSet;

/// Names of a head's weight without `.weight`. A dot and a number may follow, as in a Sequential.
const HEADS: [&str; 5] = ["fc", "classifier", "head", "head.fc", "last_linear"];

/// Most names that a message shows.
const SHOWN: usize = 5;

/// The network's tensors under torchvision's names: without the prefix, and with the head under `fc`. Tensors
/// beside the network are left out, and a note of the result names them. With [`Head::Ignored`] the head is
/// left out too.
///
/// Errors: several networks, several heads, a network of a kind that is not supported, a tensor of the
/// network that is not of finite floats.
pub fn network_of(t: Tensors, head: Head) -> Result<Tensors> {
    let names: BTreeSet<String> = t.iter().map(|(n, _)| n).chain(t.unread()).map(String::from).collect();
    let Some(prefix) = prefix(&t, &names)? else {
        // A tensor that cannot be read explains better what the file is than that it holds no network.
        t.expect_all_read()?;
        return Ok(t);
    };
    let own_head = match head {
        Head::Wanted => head_of(&t, &prefix)?,
        Head::Ignored => None,
    };
    let is_outside = own_head.as_ref().is_some_and(|h| !h.starts_with(&prefix));
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for name in &names {
        let part = name.strip_prefix(&prefix);
        let role = match (own_head.as_deref().and_then(|h| name.strip_prefix(h)), part) {
            (Some(end), _) if [".weight", ".bias"].contains(&end) => Some(format!("fc{end}")),
            (_, Some(part)) if is_trunk(part) => Some(part.to_owned()),
            (_, Some(part)) if is_of_a_head(part) => (head == Head::Wanted).then(|| part.to_owned()),
            // A layer between the network and its head would change what the head sees, so it is kept, and
            // reported as unexpected.
            (_, part) if (part.is_some() || is_outside) && is_layer(&t, &names, name) => {
                Some(part.unwrap_or(name.as_str()).to_owned())
            }
            _ => {
                left_out.push(name.as_str());
                None
            }
        };
        kept.extend(role.map(|role| (name.as_str(), role)));
    }
    let note = (!left_out.is_empty()).then(|| {
        let dots = if left_out.len() > SHOWN { ", ..." } else { "" };
        let shown = left_out[..left_out.len().min(SHOWN)].join(", ");
        format!(
            "{}: {} beside the network left out ({shown}{dots})",
            t.file().display(),
            counted(left_out.len())
        )
    });
    let mut network =
        t.renamed(|name| Some(kept[kept.binary_search_by(|(n, _)| (*n).cmp(name)).ok()?].1.clone()));
    network.notes.extend(note);
    network.expect_all_read()?;
    refuse_variants(&network)?;
    Ok(network)
}

fn counted(n: usize) -> String {
    if n == 1 { "1 tensor".into() } else { format!("{n} tensors") }
}

/// What precedes the names of the network's tensors; `None` where there is no network.
///
/// Errors: several networks.
fn prefix(t: &Tensors, names: &BTreeSet<String>) -> Result<Option<String>> {
    // The part of a name before `mark`, where that begins a component of the name.
    let before = |name: &String, mark: &str| {
        let at = name.match_indices(mark).map(|(at, _)| at).find(|at| *at == 0 || name[..*at].ends_with('.'));
        at.map(|at| name[..at].to_owned())
    };
    let is_unit = |prefix: &String| prefix.rsplit('.').nth(2).is_some_and(is_block_name);
    let with_layers: BTreeSet<String> = names.iter().filter_map(|n| before(n, "layer1.0.")).collect();
    // A deep stem is a sequence of convolutions.
    let of_stem = |n| before(n, "conv1.weight").or_else(|| before(n, "conv1.0.weight"));
    let with_stem: BTreeSet<String> =
        names.iter().filter_map(of_stem).filter(|prefix| !is_unit(prefix)).collect();
    let both: BTreeSet<String> = with_layers.intersection(&with_stem).cloned().collect();
    let found =
        [both, with_layers, with_stem].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    if found.len() > 1 {
        let listed: Vec<String> = found.iter().map(|prefix| format!("{prefix}conv1.weight")).collect();
        let message = format!(
            "expected one network, found {}: {}; keep only the tensors of one of them",
            found.len(),
            listed.join(", ")
        );
        return Err(Error::data(t.file(), message));
    }
    Ok(found.into_iter().next())
}

/// Whether a name's component is `layer1`, `layer2` and so on.
fn is_block_name(component: &str) -> bool {
    component.strip_prefix("layer").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a name without its prefix is that of a tensor before the head.
fn is_trunk(part: &str) -> bool {
    let first = part.split('.').next().unwrap_or_default();
    ["conv1", "bn1"].contains(&first) || is_block_name(first)
}

fn is_of_a_head(part: &str) -> bool {
    HEADS.iter().any(|head| part.strip_prefix(head).is_some_and(|rest| rest.starts_with('.')))
}

/// The name of the head, without `.weight` and `.bias`: below the network's prefix, or else below what
/// precedes its last component, as in `backbone.conv1.weight` beside `fc.weight`.
///
/// Errors: several heads.
fn head_of(t: &Tensors, prefix: &str) -> Result<Option<String>> {
    let mut base = prefix;
    loop {
        let is_head = |name: &&str| {
            let Some(part) = name.strip_prefix(base).and_then(|rest| rest.strip_suffix(".weight")) else {
                return false;
            };
            let is_sequential = |head: &&str| {
                let number = part.strip_prefix(*head).and_then(|rest| rest.strip_prefix('.'));
                number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            };
            let is_named = HEADS.contains(&part) || HEADS.iter().any(is_sequential);
            is_named && t.get(name).is_some_and(|w| w.shape.len() == 2)
        };
        let found: Vec<&str> = t.iter().map(|(name, _)| name).filter(is_head).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one.strip_suffix(".weight").map(String::from)),
            _ => {
                let message = format!(
                    "expected one fully connected layer as the head, found {}; a head of several layers is not supported",
                    found.join(", ")
                );
                return Err(Error::data(t.file(), message));
            }
        }
        // `a.b.` becomes `a.`, and that becomes nothing.
        let Some(outer) = base.strip_suffix('.') else { return Ok(None) };
        base = &outer[..outer.rfind('.').map_or(0, |at| at + 1)];
    }
}

/// Whether the tensor seems to belong to a layer: a matrix or a filter, or a vector with the others of an
/// affine layer or a batch norm beside it.
fn is_layer(t: &Tensors, names: &BTreeSet<String>, name: &str) -> bool {
    if t.get(name).is_some_and(|tensor| tensor.shape.len() >= 2) {
        return true;
    }
    let owner = name.rsplit_once('.').map_or("", |(owner, _)| owner);
    let has = |part: &str| names.contains(&format!("{owner}.{part}"));
    has("weight") && (has("bias") || has("running_mean"))
}

/// Refuses networks that have torchvision's names but other layers.
fn refuse_variants(t: &Tensors) -> Result<()> {
    let refused = |what: &str, name: &str| {
        Err(Error::data(t.file(), format!("{what} are not supported (the file has {name})")))
    };
    for (name, tensor) in t.iter() {
        let parts: Vec<&str> = name.split('.').collect();
        let has = |names: &[&str]| parts.iter().any(|part| names.contains(part));
        if has(&["se", "se_module"]) {
            return refused("squeeze-and-excitation blocks, as in seresnet50,", name);
        }
        if has(&["aa", "filt", "blur", "blurpool"]) {
            return refused("anti-aliased convolutions, as in resnetblur50,", name);
        }
        // In a residual unit of ours this convolution has as many input channels as output channels.
        if let ([block, _, "conv2", "weight"], &[k, c, _, _]) = (&parts[..], &tensor.shape[..])
            && is_block_name(block)
            && c > 0
            && c < k
            && k % c == 0
        {
            let what = "grouped convolutions, as in resnext50_32x4d,";
            return refused(what, &format!("{name} with {k} filters of {c} channels"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of zeros for each name. Heads' weights are matrices, and convolutions have four dimensions.
    fn dict(names: &[&str]) -> Tensors {
        let mut t = Tensors::new();
        for name in names {
            let shape: &[usize] = match name {
                n if n.contains("conv") && n.ends_with("weight") => &[4, 4, 1, 1],
                n if n.ends_with(".weight") && !n.contains("bn") && !n.contains("norm") => &[2, 4],
                _ => &[2],
            };
            t.insert(*name, shape, vec![0.0; shape.iter().product()]).unwrap();
        }
        t
    }

    const TRUNK: [&str; 3] = ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight"];

    fn under(prefix: &str, more: &[&str]) -> Tensors {
        let trunk = TRUNK.map(|name| format!("{prefix}{name}"));
        dict(&trunk.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
    }

    fn names(t: &Tensors) -> Vec<&str> {
        t.iter().map(|(n, _)| n).collect()
    }

    const FOUND: [&str; 5] = ["bn1.bias", "conv1.weight", "fc.bias", "fc.weight", "layer1.0.conv1.weight"];

    #[test]
    fn the_network_is_found_below_any_prefix_and_its_head_under_any_name() {
        for (prefix, head) in [
            ("", "fc"),
            ("module.", "module.fc"),
            ("net.", "net.fc"),
            ("module.model.", "module.model.fc.1"),
            ("backbone.", "fc"),
            ("backbone.", "classifier.0"),
            ("model.backbone.", "model.head.fc"),
            ("model.backbone.", "last_linear"),
            ("ema.0.", "ema.0.head"),
            ("", "classifier"),
        ] {
            let (w, b) = (format!("{head}.weight"), format!("{head}.bias"));
            let t = network_of(under(prefix, &[&w, &b]), Head::Wanted).unwrap();
            assert_eq!(names(&t), FOUND, "{prefix} {head}");
            assert!(t.notes.is_empty(), "{:?}", t.notes);
            let t = network_of(under(prefix, &[&w, &b]), Head::Ignored).unwrap();
            assert_eq!(names(&t), ["bn1.bias", "conv1.weight", "layer1.0.conv1.weight"], "{prefix} {head}");
        }
    }

    #[test]
    fn tensors_beside_the_network_are_left_out_with_a_note() {
        for (prefix, beside) in [
            ("model.", "criterion.pos_weight"),
            ("model.", "val_ap.thresholds"),
            ("module.", "n_averaged"),
            ("", "criterion.pos_weight"),
            ("model.", "projector.weight"),
        ] {
            let head = ["fc.weight", "fc.bias"].map(|n| format!("{prefix}{n}"));
            let t = network_of(under(prefix, &[&head[0], &head[1], beside]), Head::Wanted).unwrap();
            assert_eq!(names(&t), FOUND);
            let expected = format!("<memory>: 1 tensor beside the network left out ({beside})");
            assert_eq!(t.notes, [expected]);
        }
    }

    #[test]
    fn a_layer_that_may_lie_before_the_head_is_kept_and_so_reported() {
        for (prefix, beside) in [
            ("backbone.", &["neck.weight"][..]),
            ("backbone.", &["norm.weight", "norm.bias"]),
            ("", &["norm.weight", "norm.running_mean"]),
            ("", &["layer5.0.conv1.weight"]),
            ("", &["fc.wieght"]),
        ] {
            let more: Vec<&str> = ["fc.weight", "fc.bias"].iter().chain(beside).copied().collect();
            let t = network_of(under(prefix, &more), Head::Wanted).unwrap();
            assert!(beside.iter().all(|name| t.get(name).is_some()), "{:?}", names(&t));
        }
    }

    #[test]
    fn several_networks_or_heads_are_listed() {
        let mut two = under("model.", &[]);
        for (name, tensor) in under("ema.", &[]).iter() {
            two.insert(name, &tensor.shape, tensor.data.clone()).unwrap();
        }
        let e = network_of(two, Head::Wanted).unwrap_err();
        assert_eq!(e.exit_code(), 4);
        assert!(e.to_string().contains("found 2: ema.conv1.weight, model.conv1.weight"), "{e}");
        let heads = ["fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"];
        let e = network_of(under("", &heads), Head::Wanted).unwrap_err().to_string();
        assert!(e.contains("found fc.0.weight, fc.3.weight; a head of several layers"), "{e}");
        assert_eq!(names(&network_of(under("", &heads), Head::Ignored).unwrap()).len(), 3);
        assert_eq!(network_of(dict(&["x.weight"]), Head::Wanted).unwrap().len(), 1);
    }

    #[test]
    fn variants_of_the_network_are_refused_by_name() {
        let mut grouped = under("", &[]);
        grouped.insert("layer1.0.conv2.weight", &[128, 4, 3, 3], vec![0.0; 128 * 4 * 9]).unwrap();
        for (t, expected) in [
            (
                grouped,
                "grouped convolutions, as in resnext50_32x4d, are not supported (the file has layer1.0.conv2",
            ),
            (under("model.", &["model.layer1.0.se.fc1.weight"]), "squeeze-and-excitation"),
            (under("", &["layer1.0.se_module.fc1.bias"]), "squeeze-and-excitation"),
            (under("", &["layer2.0.conv2.0.filt"]), "anti-aliased convolutions"),
            (under("", &["layer2.0.aa.filt"]), "anti-aliased convolutions"),
        ] {
            let e = network_of(t, Head::Wanted).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
    }

    #[test]
    fn a_deep_stem_is_part_of_the_network() {
        let t = dict(&["net.conv1.0.weight", "net.conv1.1.bias", "net.layer1.0.conv1.weight", "extra"]);
        let t = network_of(t, Head::Ignored).unwrap();
        assert_eq!(names(&t), ["conv1.0.weight", "conv1.1.bias", "layer1.0.conv1.weight"]);
    }
}
