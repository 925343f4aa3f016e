//! Files that are ours, and files that only look like it.

use super::proto::{Graph, Property, Tensor};
use super::*;

fn model() -> Model {
    let initializer = vec![
        Tensor::floats("a", &[2, 2], &[1.0, -2.0, 3.5, 4.0]),
        Tensor::int64s("graph.order", &[1, 0]),
        Tensor::floats("b", &[], &[7.0]),
    ];
    Model {
        ir_version: Some(8),
        producer_name: Some(PRODUCER.into()),
        graph: Some(Graph { initializer, ..Graph::default() }),
        metadata_props: vec![
            Property::new("labels", "[\"bus\"]".into()),
            Property::new(META, "{\"labels\":[\"bus\"]}".into()),
        ],
        ..Model::default()
    }
}

fn parsed(m: &Model) -> Result<Tensors> {
    parse(&m.encode_to_vec(), Path::new("m.onnx"))
}

fn refused(m: &Model) -> String {
    let e = parsed(m).unwrap_err();
    assert_eq!(e.exit_code(), 4, "{e}");
    assert!(e.to_string().starts_with("m.onnx: "), "{e}");
    e.to_string()
}

/// A model whose first initializer is changed.
fn with(change: impl FnOnce(&mut Tensor)) -> Model {
    let mut m = model();
    change(&mut m.graph.as_mut().unwrap().initializer[0]);
    m
}

#[test]
fn weights_and_metadata_come_back_and_constants_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    save(&path, &model()).unwrap();
    let t = load(&path).unwrap();
    assert_eq!(t.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b"]);
    let a = t.get("a").unwrap();
    assert_eq!((&a.shape[..], &a.data[..]), (&[2, 2][..], &[1.0, -2.0, 3.5, 4.0][..]));
    assert!(t.get("b").unwrap().shape.is_empty());
    assert_eq!(t.meta_as::<Vec<String>>("labels").unwrap(), ["bus"]);
    assert_eq!(t.file(), path);
    assert!(is_likely(&std::fs::read(&path).unwrap()));
    assert_eq!(load(dir.path().join("none.onnx")).unwrap_err().exit_code(), 4);
}

#[test]
fn files_of_others_are_refused_by_their_producer() {
    let other = Model { producer_name: Some("pytorch".into()), ..model() };
    assert!(
        refused(&other).contains("only ONNX files that dfka-engine exported")
            && refused(&other).contains("pytorch")
    );
    assert!(refused(&Model { producer_name: None, ..model() }).contains("unnamed producer"));
    assert!(refused(&Model { metadata_props: vec![], ..model() }).contains("dfka-engine exported"));
    assert!(refused(&Model { graph: None, ..model() }).contains("dfka-engine exported"));
}

#[test]
fn lengths_are_checked_against_what_is_there() {
    assert!(refused(&with(|t| t.dims = vec![2, 3])).contains("array \"a\": expected 6 elements"));
    assert!(refused(&with(|t| t.dims = vec![-1])).contains("expected a shape"));
    assert!(refused(&with(|t| t.dims = vec![i64::MAX, i64::MAX])).contains("expected a shape"));
    assert!(refused(&with(|t| t.dims = vec![i64::MAX / 2])).contains("elements of four bytes"));
    assert!(refused(&with(|t| t.dims = vec![1; 5000])).contains("beside its raw data"));
    assert!(refused(&with(|t| t.data_type = Some(7))).contains("found data type 7"));
    assert!(refused(&with(|t| t.raw_data = None)).contains("found 0 bytes"));
    assert!(refused(&with(|t| t.name = Some("b".into()))).contains("already taken"));
    let nan = with(|t| t.raw_data.as_mut().unwrap()[4..8].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(refused(&nan).contains("found NaN at index [0, 1] (element 1 of 4)"));
    let text = |text: String| Model { metadata_props: vec![Property::new(META, text)], ..model() };
    assert!(refused(&text("[1".into())).contains("expected a JSON object"));
    assert!(refused(&text("[1]".into())).contains("expected a JSON object"));
    assert!(refused(&text(" ".repeat(MAX_META_BYTES + 1))).contains("at most 1048576 bytes"));
}

/// Cut anywhere or with any byte changed: an error or a model, never a panic.
#[test]
fn damage_is_an_error() {
    let whole = model().encode_to_vec();
    let path = Path::new("m.onnx");
    for n in 0..whole.len() {
        assert!(parse(&whole[..n], path).is_err(), "cut at {n}");
    }
    for i in 0..whole.len() {
        for flip in [0x01, 0x08, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[i] ^= flip;
            if let Err(e) = parse(&bytes, path) {
                assert_eq!(e.exit_code(), 4, "byte {i} ^ {flip:#x}: {e}");
            }
        }
    }
    let twice = [&whole[..], &whole].concat();
    assert!(parse(&twice, path).unwrap_err().to_string().contains("stands twice"));
    for rubbish in [&b""[..], b"PK\x03\x04", b"{}", &[0xff; 64], &[0x0b, 0x0b]] {
        assert_eq!(parse(rubbish, path).unwrap_err().exit_code(), 4, "{rubbish:?}");
    }
}
