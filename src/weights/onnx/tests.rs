//! ONNX files that the engine wrote, files of other programs, and damaged ones.

use super::proto::{GraphProto, StringStringEntryProto, TensorProto};
use super::*;

fn model() -> ModelProto {
    let initializer = vec![
        TensorProto::floats("a", &[2, 2], &[1.0, -2.0, 3.5, 4.0]),
        TensorProto::int64s("graph.order", &[1, 0]),
        TensorProto::floats("b", &[], &[7.0]),
    ];
    ModelProto {
        ir_version: Some(8),
        producer_name: Some(PRODUCER.into()),
        graph: Some(GraphProto { initializer, ..GraphProto::default() }),
        metadata_props: vec![
            StringStringEntryProto::new("labels", "[\"bus\"]".into()),
            StringStringEntryProto::new(META, "{\"labels\":[\"bus\"]}".into()),
        ],
        ..ModelProto::default()
    }
}

fn parsed(m: &ModelProto) -> Result<Tensors> {
    parse(&m.encode_to_vec(), Path::new("m.onnx"))
}

fn refused(m: &ModelProto) -> String {
    let e = parsed(m).unwrap_err();
    assert_eq!(e.exit_code(), 4, "{e}");
    assert!(e.to_string().starts_with("m.onnx: "), "{e}");
    e.to_string()
}

/// A model whose first initializer is changed.
fn with(change: impl FnOnce(&mut TensorProto)) -> ModelProto {
    let mut m = model();
    change(&mut m.graph.as_mut().unwrap().initializer[0]);
    m
}

#[test]
fn weights_and_metadata_are_read_back_and_constants_are_not() {
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
fn files_of_other_producers_are_refused() {
    let other = ModelProto { producer_name: Some("pytorch".into()), ..model() };
    assert!(
        refused(&other).contains("only ONNX files that dfka-engine exported")
            && refused(&other).contains("pytorch")
    );
    assert!(refused(&ModelProto { producer_name: None, ..model() }).contains("not named"));
    assert!(refused(&ModelProto { metadata_props: vec![], ..model() }).contains("dfka-engine exported"));
    assert!(refused(&ModelProto { graph: None, ..model() }).contains("dfka-engine exported"));
}

#[test]
fn lengths_are_checked_against_the_bytes_that_are_there() {
    assert!(refused(&with(|t| t.dims = vec![2, 3])).contains("array \"a\": expected 6 elements"));
    assert!(refused(&with(|t| t.dims = vec![-1])).contains("expected a shape"));
    assert!(refused(&with(|t| t.dims = vec![i64::MAX, i64::MAX])).contains("expected a shape"));
    assert!(refused(&with(|t| t.dims = vec![i64::MAX / 2])).contains("elements of 4 bytes"));
    assert!(refused(&with(|t| t.dims = vec![1; 5000])).contains("beside its raw data"));
    assert!(refused(&with(|t| t.data_type = Some(7))).contains("found data type 7"));
    assert!(refused(&with(|t| t.raw_data = None)).contains("found 0 bytes"));
    assert!(
        refused(&with(|t| t.data_type = Some(10)))
            .contains("4 elements of 2 bytes for shape [2, 2], found 16")
    );
    assert!(refused(&with(|t| t.name = Some("b".into()))).contains("already taken"));
    let nan = with(|t| t.raw_data.as_mut().unwrap()[4..8].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(refused(&nan).contains("found NaN at index [0, 1] (element 1 of 4)"));
    let text = |text: String| ModelProto {
        metadata_props: vec![StringStringEntryProto::new(META, text)],
        ..model()
    };
    assert!(refused(&text("[1".into())).contains("expected a JSON object"));
    assert!(refused(&text("[1]".into())).contains("expected a JSON object"));
    assert!(refused(&text(" ".repeat(MAX_META_BYTES + 1))).contains("at most 1048576 bytes"));
}

/// A file that is cut anywhere, or has any byte changed, gives an error or a model but never a panic.
#[test]
fn damage_never_panics() {
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
    assert!(parse(&twice, path).unwrap_err().to_string().contains("occurs twice"));
    for rubbish in [&b""[..], b"PK\x03\x04", b"{}", &[0xff; 64], &[0x0b, 0x0b]] {
        assert_eq!(parse(rubbish, path).unwrap_err().exit_code(), 4, "{rubbish:?}");
    }
}
