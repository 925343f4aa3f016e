//! A graph in half precision: weights of two bytes, and every operator in float16. Images come in and logits go
//! out as float32, so that a program that runs the graph need not know.

use half::f16;

use super::proto::{GraphProto, NodeProto, TensorProto, data_type};

/// Converts the nodes from the one behind the value `first` up to the one that gives the value `last`, and the
/// weights of these nodes. Casts at both ends keep the types of the other nodes.
///
/// Errors: a weight beyond the range of float16, by its tensor; a graph without these values.
pub fn to_float16(graph: &mut GraphProto, first: &str, last: &str) -> Result<(), String> {
    let giver = |name: &str| graph.node.iter().position(|n| n.output.iter().any(|o| o == name));
    let (Some(begin), Some(end)) = (giver(first), giver(last)) else {
        return Err(format!("the graph has no values {first} and {last}"));
    };
    let kept: Vec<String> = graph.node[..=begin].iter().flat_map(|n| n.input.clone()).collect();
    for tensor in graph.initializer.iter_mut().filter(|t| t.data_type == Some(data_type::FLOAT)) {
        if !tensor.name.as_ref().is_some_and(|name| kept.contains(name)) {
            *tensor = halved(tensor)?;
        }
    }
    let [half_first, half_last] = [first, last].map(|name| format!("{name}.float16"));
    let rename = |names: &mut Vec<String>, from: &str, to: &str| {
        names.iter_mut().filter(|name| *name == from).for_each(|name| *name = to.into());
    };
    for node in &mut graph.node[begin + 1..=end] {
        rename(&mut node.input, first, &half_first);
        rename(&mut node.output, last, &half_last);
        rename(&mut node.input, last, &half_last);
    }
    if let Some(name) = graph.node[end].output.first() {
        graph.node[end].name = Some(name.clone());
    }
    let cast =
        |from: String, to: &str, kind: i32| NodeProto::new("Cast", vec![from], to).int("to", i64::from(kind));
    graph.node.insert(end + 1, cast(half_last, last, data_type::FLOAT));
    graph.node.insert(begin + 1, cast(first.into(), &half_first, data_type::FLOAT16));
    Ok(())
}

/// The same tensor, each element rounded to the nearest float16.
fn halved(tensor: &TensorProto) -> Result<TensorProto, String> {
    let words = tensor.raw_data.as_deref().unwrap_or_default().as_chunks::<4>().0;
    let mut bytes = Vec::with_capacity(2 * words.len());
    for word in words {
        let (exact, name) = (f32::from_le_bytes(*word), tensor.name.as_deref().unwrap_or_default());
        let rounded = f16::from_f32(exact);
        if !rounded.is_finite() {
            return Err(format!(
                "array {name:?}: {exact} is beyond float16, whose largest number is {}; export in float32",
                f16::MAX
            ));
        }
        bytes.extend(rounded.to_le_bytes());
    }
    Ok(TensorProto { data_type: Some(data_type::FLOAT16), raw_data: Some(bytes), ..tensor.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(weight: f32) -> GraphProto {
        let node = |op: &str, inputs: &[&str], output: &str| {
            NodeProto::new(op, inputs.iter().map(|i| i.to_string()).collect(), output)
        };
        GraphProto {
            node: vec![
                node("Sub", &["image", "graph.mean"], "centred"),
                node("Mul", &["centred", "w"], "scaled"),
                node("Gather", &["scaled", "order"], "logits"),
                node("Sigmoid", &["logits"], "probabilities"),
            ],
            initializer: vec![
                TensorProto::floats("graph.mean", &[1], &[0.1]),
                TensorProto::floats("w", &[2], &[weight, 1e-9]),
                TensorProto::int64s("order", &[0]),
            ],
            ..GraphProto::default()
        }
    }

    #[test]
    fn the_middle_is_halved_and_both_ends_keep_their_types() {
        let mut g = graph(0.1);
        to_float16(&mut g, "centred", "logits").unwrap();
        let shown: Vec<String> = g
            .node
            .iter()
            .map(|n| format!("{} {} -> {}", n.op_type.as_deref().unwrap(), n.input.join(","), n.output[0]))
            .collect();
        assert_eq!(
            shown,
            [
                "Sub image,graph.mean -> centred",
                "Cast centred -> centred.float16",
                "Mul centred.float16,w -> scaled",
                "Gather scaled,order -> logits.float16",
                "Cast logits.float16 -> logits",
                "Sigmoid logits -> probabilities",
            ]
        );
        let kinds: Vec<i32> = g.initializer.iter().map(|t| t.data_type.unwrap()).collect();
        assert_eq!(kinds, [data_type::FLOAT, data_type::FLOAT16, data_type::INT64]);
        // 0.1 in float16 is 2e66, and 1e-9 is below its smallest number.
        assert_eq!(g.initializer[1].raw_data.as_deref().unwrap(), [0x66, 0x2e, 0, 0]);
    }

    #[test]
    fn a_weight_beyond_the_range_is_named() {
        let e = to_float16(&mut graph(70_000.0), "centred", "logits").unwrap_err();
        assert!(e.contains("array \"w\": 70000 is beyond float16, whose largest number is 65504"), "{e}");
        assert!(to_float16(&mut graph(1.0), "none", "logits").is_err());
    }
}
