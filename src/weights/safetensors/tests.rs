use super::*;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;
use std::collections::HashMap;

fn read_bytes(bytes: &[u8]) -> Result<Tensors> {
    read(&mut &bytes[..], bytes.len() as u64, Path::new("w.safetensors"))
}

fn refusal(bytes: &[u8]) -> String {
    let Err(e) = read_bytes(bytes) else { panic!("expected a refusal") };
    assert_eq!(e.exit_code(), 4, "{e}");
    let text = e.to_string();
    assert!(text.starts_with("w.safetensors: "), "{text}");
    text
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn one(dtype: &str, shape: &str, offsets: [usize; 2], data: &[u8]) -> Vec<u8> {
    let [from, to] = offsets;
    with_header(
        &format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#),
        data,
    )
}

fn sample() -> Tensors {
    let mut t = Tensors::new();
    t.insert("layer1.conv", &[2, 3, 3, 2], (0..36).map(|i| i as f32 * 0.37 - 5.0).collect()).unwrap();
    t.insert("a.bias", &[2], vec![f32::MIN_POSITIVE / 2.0, -0.0]).unwrap();
    t.insert("scale", &[], vec![f32::MAX]).unwrap();
    t.insert("nothing", &[0, 4], vec![]).unwrap();
    t.insert("long", &[3 * CHUNK + 1], (0..3 * CHUNK + 1).map(|i| i as f32).collect()).unwrap();
    t.meta.insert("labels".into(), json!(["hund", "straße"]));
    t.meta.insert("mean".into(), json!([0.5, 0.25, 0.5]));
    t.meta.insert("provenance".into(), json!("made up"));
    t
}

#[test]
fn saved_tensors_load_bit_for_bit_and_saving_twice_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    let t = sample();
    save(&a, &t).unwrap();
    let back = load(&a).unwrap();
    assert_eq!((back.file(), &back.meta, back.len()), (&*a, &t.meta, t.len()));
    for ((n0, t0), (n1, t1)) in t.iter().zip(back.iter()) {
        assert_eq!((n0, &t0.shape), (n1, &t1.shape));
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&t0.data), bits(&t1.data), "{n0}");
    }
    for _ in 0..4 {
        save(&b, &back).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    }
    // The safetensors crate reads the file, and finds our plain metadata entries.
    let bytes = std::fs::read(&a).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("a.bias").unwrap().shape(), [2]);
    let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(length % 8, 0);
    let strings = header.metadata().clone().unwrap();
    assert_eq!(strings["labels"], r#"["hund","straße"]"#);
    assert_eq!(strings["mean"], "[0.5,0.25,0.5]");
    assert_eq!(strings.len(), 3);
    let empty = Tensors::new();
    save(&b, &empty).unwrap();
    assert!(load(&b).unwrap().is_empty());
}

#[test]
fn every_float_type_is_converted_and_batch_counters_are_left_out() {
    let values = [1.0f32, -2.5, 0.0, 1024.0];
    let bytes = |f: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|v| f(*v)).collect::<Vec<u8>>();
    let data = [
        ("f64", Dtype::F64, bytes(&|v| f64::from(v).to_le_bytes().into())),
        ("f32", Dtype::F32, bytes(&|v| v.to_le_bytes().into())),
        ("f16", Dtype::F16, bytes(&|v| f16::from_f32(v).to_le_bytes().into())),
        ("bf16", Dtype::BF16, bytes(&|v| bf16::from_f32(v).to_le_bytes().into())),
        ("bn1.num_batches_tracked", Dtype::I64, vec![1; 32]),
    ];
    let views: HashMap<&str, TensorView> =
        data.iter().map(|(n, t, b)| (*n, TensorView::new(*t, vec![2, 2], b).unwrap())).collect();
    let theirs = HashMap::from([("format".to_owned(), "pt".to_owned()), ("labels".into(), "[\"a\"]".into())]);
    let t = read_bytes(&serialize(views, Some(theirs)).unwrap()).unwrap();
    assert_eq!(t.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["bf16", "f16", "f32", "f64"]);
    assert!(t.iter().all(|(_, t)| t.data == values && t.shape == [2, 2]));
    assert_eq!(t.meta_as::<Vec<String>>("labels").unwrap(), ["a"]);
    assert_eq!(t.meta.len(), 1, "`format` belongs to the other program");
}

#[test]
fn other_types_and_non_finite_values_are_refused_by_name() {
    for dtype in ["I64", "U8", "BOOL", "I32"] {
        let size = match dtype {
            "I64" => 8,
            "I32" => 4,
            _ => 1,
        };
        let e = refusal(&one(dtype, "[1]", [0, size], &vec![0; size]));
        assert!(e.contains("\"x\": expected dtype F32") && e.ends_with(dtype), "{e}");
    }
    let mut values = [0f32, 1.0, f32::NAN, 2.0].map(f32::to_le_bytes).concat();
    let e = refusal(&one("F32", "[2,2]", [0, 16], &values));
    assert!(e.contains("array \"x\": expected finite numbers, found NaN at index [1, 0]"), "{e}");
    values[8..12].copy_from_slice(&1e9f32.to_le_bytes());
    assert_eq!(read_bytes(&one("F32", "[2,2]", [0, 16], &values)).unwrap().len(), 1);
    let beyond = refusal(&one("F64", "[]", [0, 8], &1e300f64.to_le_bytes()));
    assert!(beyond.contains("found inf"), "{beyond}");
    let rank = refusal(&one("F32", &format!("{:?}", [1; 65]), [0, 4], &[0; 4]));
    assert!(rank.contains("at most 64 dimensions"), "{rank}");
}

#[test]
fn a_false_header_is_refused_before_anything_is_allocated() {
    let huge = refusal(&u64::MAX.to_le_bytes());
    assert!(huge.contains("expected a safetensors header of at most 0 bytes"), "{huge}");
    let mut long = vec![b' '; 64];
    long[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(refusal(&long).contains("at most 56 bytes"));
    assert!(refusal(&[]).contains("the end"));
    for (bytes, expected) in [
        (one("F32", "[1099511627776]", [0, 4 << 40], &[0; 8]), "expected 4398046511104 bytes of tensors"),
        (one("F32", "[2]", [0, 4], &[0; 4]), "invalid shape"),
        (one("F32", "[1]", [4, 8], &[0; 8]), "offset"),
        (one("F32", "[1]", [8, 4], &[0; 8]), "offset"),
        (one("F32", "[4611686018427387904, 4]", [0, 4], &[0; 4]), "overflow"),
        (one("F32", "[1]", [0, 4], &[0; 5]), "expected 4 bytes of tensors, found 5"),
        (one("F99", "[1]", [0, 4], &[0; 4]), "F99"),
        (with_header("{", b""), "malformed safetensors header"),
        (with_header("\u{1}\u{2}", b""), "malformed"),
        (with_header(&"[".repeat(5000), b""), "malformed"),
        (with_header(r#"{"__metadata__":{"dfka":"[1]"}}"#, b""), "expected a JSON object"),
        (with_header(r#"{"__metadata__":{"dfka":3}}"#, b""), "malformed"),
        (with_header(r#"{"__meta__":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]), "reserved"),
    ] {
        let e = refusal(&bytes);
        assert!(e.contains(expected), "{expected:?} is not in {e:?}");
    }
}

#[test]
fn truncation_and_flipped_bits_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let mut t = Tensors::new();
    t.insert("w", &[3, 2], vec![1.0; 6]).unwrap();
    t.meta.insert("labels".into(), json!(["a"]));
    save(&path, &t).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for end in 0..whole.len() {
        refusal(&whole[..end]);
    }
    let mut read = 0;
    for i in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[i / 8] ^= 1 << (i % 8);
        match read_bytes(&bytes) {
            Ok(_) => read += 1,
            Err(e) => assert_eq!(e.exit_code(), 4),
        }
    }
    assert!(read > 0, "most flipped bits of a value give another finite value");
}

#[test]
fn tensors_that_could_not_be_read_back_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    for (name, value) in [("x", f32::INFINITY), ("__metadata__", 0.0)] {
        let mut t = Tensors::new();
        t.insert(name, &[1], vec![value]).unwrap();
        let e = save(&path, &t).unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains(name), "{e}");
        assert!(!path.exists());
    }
}
