//! What the markers of a JPEG file say: where it may be shortened, so that a decoder does not decode rows that
//! are not needed, and whether a progressive file has all its scans.

/// Markers: start of image, end of image, start of scan, and start of a baseline or an extended sequential
/// frame in Huffman code.
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const SOF: [u8; 2] = [0xc0, 0xc1];
/// Markers that start other frames: progressive, lossless, arithmetic. The markers DHT (c4), JPG (c8) and
/// DAC (cc), which lie between them, do not start a frame.
const OTHER_SOF: [u8; 11] = [0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf];

/// The start of a progressive frame in Huffman code.
const PROGRESSIVE: u8 = 0xc2;

/// Whether a progressive file leaves out a part of its image: a coefficient that no scan brings, or whose last
/// bits no scan brings. Such a file is the beginning of a whole one, or was written so on purpose. Decoders
/// show different pixels for it, because some smooth the blocks in place of the missing coefficients.
///
/// The scans' headers say it. Other files, and those whose markers cannot be followed, give `false`: they are
/// whole, or their decoder says what is wrong with them.
pub fn lacks_scans(bytes: &[u8]) -> bool {
    /// More than any bit of a coefficient: none of it has come.
    const NOTHING: u8 = u8::MAX;
    // For each component its id, and for each of its coefficients the lowest bit that has come.
    let mut components: Option<Vec<(u8, [u8; 64])>> = None;
    let mut at = 2;
    while let Some((marker, segment)) = next_marker(bytes, &mut at) {
        match (marker, &mut components) {
            (PROGRESSIVE, None) => {
                let [_, _, _, _, _, _, of_components @ ..] = segment else { return false };
                components = Some(of_components.chunks_exact(3).map(|c| (c[0], [NOTHING; 64])).collect());
            }
            (PROGRESSIVE, Some(_)) => return false,
            _ if SOF.contains(&marker) || OTHER_SOF.contains(&marker) => return false,
            // The number of components; for each its id and its Huffman tables; then the first and the last
            // coefficient, and the bits (four each): the lowest that came before, and the lowest of this scan.
            (SOS, Some(components)) => {
                let [_, ids @ .., first, last, bits] = segment else { return false };
                let (first, last) = (usize::from(*first), usize::from(*last));
                for (id, lowest) in components.iter_mut() {
                    if ids.chunks_exact(2).any(|c| c[0] == *id)
                        && let Some(brought) = lowest.get_mut(first..=last)
                    {
                        brought.fill(bits & 15);
                    }
                }
            }
            (EOI, Some(components)) => return components.iter().any(|c| c.1.iter().any(|bit| *bit != 0)),
            _ => {}
        }
    }
    false
}

/// The next marker from `at` on with its segment, which is empty where the marker has none. Afterwards `at` is
/// behind both. Bytes between a segment and the next marker are passed over, as the data of a scan are.
fn next_marker<'a>(bytes: &'a [u8], at: &mut usize) -> Option<(u8, &'a [u8])> {
    loop {
        *at += bytes.get(*at..)?.iter().position(|b| *b == 0xff)? + 1;
        // A zero stands for the byte ff in the data of a scan, ff for a longer marker, d0 to d7 restart a scan.
        match *bytes.get(*at)? {
            0 | 0xff | 0xd0..=0xd7 => {}
            EOI => return Some((EOI, &[])),
            marker => {
                let length = bytes.get(*at + 1..*at + 3)?;
                let end = *at + 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                let segment = bytes.get(*at + 3..end)?;
                *at = end;
                return Some((marker, segment));
            }
        }
    }
}

/// Lowers the height in a JPEG's header to at least `rows`, so that a decoder stops after that many rows.
/// Returns the new height.
///
/// The remaining rows decode to the same bits, because a scan holds the rows of blocks one after the other,
/// each with all components. Where chroma is interpolated between rows, the last rows of a block depend on
/// the next block, which is then kept. This saves time because training crops images at random: the lower
/// edge of a crop lies on average at four fifths of the height.
///
/// Returns `None` and changes nothing for files whose scans do not hold all components of a row (progressive
/// files, and those with one component per scan), and for files without the end marker of a JPEG: a file
/// that was cut short must be decoded to its end, so that it is refused.
pub fn shorten(bytes: &mut [u8], rows: usize) -> Option<usize> {
    if !bytes.starts_with(&[0xff, SOI]) || !bytes.ends_with(&[0xff, EOI]) {
        return None;
    }
    let mut frame = None;
    let mut at = 2;
    loop {
        let &[0xff, marker, a, b] = bytes.get(at..at + 4)?.first_chunk()? else { return None };
        let segment = bytes.get(at + 4..at + 2 + usize::from(u16::from_be_bytes([a, b])))?;
        match marker {
            // Precision, height, width, number of components; then for each component its id, its sampling
            // factors (horizontal and vertical, four bits each) and its quantisation table.
            _ if SOF.contains(&marker) && frame.is_none() => {
                let [8, h0, h1, _, _, n, components @ ..] = segment else { return None };
                let tallest = components.chunks_exact(3).map(|c| usize::from(c[1] & 15)).max()?;
                frame = Some((at + 5, usize::from(u16::from_be_bytes([*h0, *h1])), *n, tallest));
            }
            _ if SOF.contains(&marker) || OTHER_SOF.contains(&marker) => return None,
            SOS => {
                let (place, h, n, tallest) = frame.filter(|f| f.3 > 0)?;
                let kept = rows.max(1).checked_add(tallest)?.checked_next_multiple_of(8 * tallest)?;
                if segment.first() != Some(&n) || kept >= h {
                    return None;
                }
                bytes[place..place + 2].copy_from_slice(&u16::try_from(kept).ok()?.to_be_bytes());
                return Some(kept);
            }
            _ => {}
        }
        at += 4 + segment.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A JPEG without image data; `shorten` reads only what precedes it.
    fn header(frame: u8, h: u16, sampling: &[u8], in_scan: u8) -> Vec<u8> {
        let n = sampling.len() as u8;
        let mut out = vec![0xff, SOI, 0xff, 0xe0, 0, 4, 1, 2, 0xff, frame, 0, 8 + 3 * n, 8];
        out.extend(h.to_be_bytes());
        out.extend([0, 64, n]);
        sampling.iter().enumerate().for_each(|(i, s)| out.extend([i as u8, *s, 0]));
        out.extend([0xff, SOS, 0, 3, in_scan, 1, 2, 3, 0xff, EOI]);
        out
    }

    #[test]
    fn whole_blocks_are_kept_and_the_next_block_if_chroma_is_interpolated() {
        for (sampling, rows, kept) in [
            (&[0x11][..], 7, 8),
            (&[0x11], 9, 16),
            (&[0x22, 0x11, 0x11], 0, 16),
            (&[0x22, 0x11, 0x11], 14, 16),
            (&[0x22, 0x11, 0x11], 15, 32),
            (&[0x21, 0x11, 0x11], 16, 24),
            (&[0x11, 0x14, 0x11], 29, 64),
        ] {
            let before = header(0xc0, 100, sampling, sampling.len() as u8);
            let mut bytes = before.clone();
            assert_eq!(shorten(&mut bytes, rows), Some(kept), "{sampling:02x?} {rows}");
            assert_eq!(
                bytes,
                header(0xc0, kept as u16, sampling, sampling.len() as u8),
                "{sampling:02x?} {rows}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_shortened_is_not_changed() {
        let whole = header(0xc0, 100, &[0x22, 0x11, 0x11], 3);
        let cut_short = whole[..whole.len() - 1].to_vec();
        let headless = whole[..20].iter().chain(&[0xff, EOI]).copied().collect();
        for (bytes, rows) in [
            (header(0xc2, 100, &[0x22, 0x11, 0x11], 3), 8),
            (header(0xc0, 100, &[0x22, 0x11, 0x11], 1), 8),
            (header(0xc0, 100, &[0x20], 1), 8),
            (header(0xc0, 100, &[], 0), 8),
            (header(0xc0, 0, &[0x11], 1), 8),
            (whole.clone(), 95),
            (whole, usize::MAX),
            (cut_short, 8),
            (headless, 8),
            (vec![0xff, SOI, 0xff, EOI], 8),
            (vec![], 8),
        ] {
            let mut after = bytes.clone();
            assert_eq!(shorten(&mut after, rows), None, "{bytes:02x?} {rows}");
            assert_eq!(after, bytes);
        }
    }
}
