//! Photographs and their annotations: VOC's lists and XML files, COCO's instances, tables of labels, JPEG and
//! PNG files.

use super::{Outcome, refused};
use dfka_engine::data::{coco, csv, image, voc};
use serde_json::json;
use std::path::Path;

/// The input is a split list or, after a first byte `c`, a class list.
pub fn voc_list(bytes: &[u8]) -> Outcome {
    let path = Path::new("list.txt");
    let text = String::from_utf8_lossy(bytes);
    let Some(text) = text.strip_prefix('c') else {
        return match voc::parse_split(&text, path) {
            Ok(ids) => {
                assert_eq!(
                    voc::parse_split(&ids.join("\n"), path).expect("the rewritten text is accepted"),
                    ids
                );
                Outcome::Accepted
            }
            Err(e) => refused(&e, 4, path),
        };
    };
    let entries = match voc::parse_class_list(text, path) {
        Ok(entries) => entries,
        Err(e) => return refused(&e, 4, path),
    };
    let line =
        |(id, _, target): &(String, usize, u8)| format!("{id}  {}\n", ["-1", "1", "0"][*target as usize]);
    let again: String = entries.iter().map(line).collect();
    let again = voc::parse_class_list(&again, path).expect("the rewritten text is accepted");
    assert!(
        entries.iter().zip(&again).all(|(a, b)| (&a.0, a.2) == (&b.0, b.2)) && entries.len() == again.len()
    );
    Outcome::Accepted
}

pub fn voc_xml(bytes: &[u8]) -> Outcome {
    let path = Path::new("000001.xml");
    let row = match voc::parse_annotation(&String::from_utf8_lossy(bytes), path) {
        Ok(row) => row,
        Err(e) => return refused(&e, 4, path),
    };
    let object = |(label, target): (&String, &u8)| {
        assert!(!label.is_empty() && (1..=2).contains(target));
        let label =
            label.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\r', "&#13;");
        let is_difficult = u8::from(*target == 2);
        format!("<object><name>{label}</name><difficult>{is_difficult}</difficult></object>")
    };
    let objects: String = row.iter().map(object).collect();
    let again = format!("<annotation>{objects}</annotation>");
    assert_eq!(voc::parse_annotation(&again, path).expect("the rewritten text is accepted"), row);
    Outcome::Accepted
}

pub fn coco_json(bytes: &[u8]) -> Outcome {
    let path = Path::new("instances.json");
    let instances = match coco::parse_instances(bytes, path) {
        Ok(instances) => instances,
        Err(e) => return refused(&e, 4, path),
    };
    let count = instances.labels.len();
    assert_eq!(instances.targets.len(), instances.files.len() * count);
    let present = instances.targets.iter().enumerate().filter(|(_, t)| **t == 1).map(|(i, _)| i);
    let images = instances.files.iter().enumerate().map(|(i, f)| json!({"id": i, "file_name": f}));
    let categories = instances.labels.iter().enumerate().map(|(i, l)| json!({"id": i, "name": l}));
    let annotations = present.map(|i| json!({"image_id": i / count, "category_id": i % count}));
    let again = json!({
        "images": images.collect::<Vec<_>>(),
        "categories": categories.collect::<Vec<_>>(),
        "annotations": annotations.collect::<Vec<_>>(),
    });
    assert_eq!(
        coco::parse_instances(again.to_string().as_bytes(), path).expect("the rewritten text is accepted"),
        instances
    );
    Outcome::Accepted
}

/// The input is a table of labels.
pub fn csv(bytes: &[u8]) -> Outcome {
    let path = Path::new("labels.csv");
    let table = match csv::parse(&String::from_utf8_lossy(bytes), path) {
        Ok(table) => table,
        Err(e) => return refused(&e, 4, path),
    };
    let count = table.labels.len();
    assert_eq!(table.targets.len(), table.files.len() * count);
    // Every field in quotes, so that commas, quotes and blanks in names come back.
    let quoted = |field: &str| format!("\"{}\"", field.replace('"', "\"\""));
    let line = |name: &str, rest: Vec<String>| format!("{},{}\n", quoted(name), rest.join(","));
    let mut again = line("file", table.labels.iter().map(|l| quoted(l)).collect());
    for (name, row) in table.files.iter().zip(table.targets.chunks(count)) {
        again += &line(name, row.iter().map(|t| ["0", "1", ""][usize::from(*t)].into()).collect());
    }
    assert_eq!(csv::parse(&again, path).expect("the rewritten text is accepted"), table);
    Outcome::Accepted
}

/// The input is a JPEG file, or any other file.
pub fn jpeg(bytes: &[u8]) -> Outcome {
    pixels(bytes, Path::new("a.jpg"))
}

/// The input is a PNG file, in which the checksums of all chunks are corrected first.
pub fn png(bytes: &[u8]) -> Outcome {
    let mut bytes = bytes.to_vec();
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) {
        let end = at + 8 + length as usize;
        if bytes.len() < end + 4 {
            break;
        }
        let checksum = crc32fast::hash(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.to_be_bytes());
        at = end + 4;
    }
    pixels(&bytes, Path::new("a.png"))
}

fn pixels(bytes: &[u8], path: &Path) -> Outcome {
    match image::decode(bytes, path) {
        Ok(image) => {
            assert_eq!(image.data.len(), image.h * image.w * image.c);
            assert!((1..=image::MAX_PIXELS).contains(&(image.h * image.w)) && image.c == 4);
            // Decoding only the first rows must give the same pixels, whatever the buffer held before.
            let rows = bytes.len() % image.h;
            let buffer = vec![!image.data[0]; image.data.len()];
            let first = image::Encoded::new(bytes.to_vec(), path).and_then(|i| i.decode(rows, buffer));
            let seen = rows * image.w * 4;
            assert!(first.expect("the first rows of a file that decodes").data[..seen] == image.data[..seen]);
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, path),
    }
}
