//! "Did you mean": the nearest of the names that exist.

/// The candidate nearest to `word`, when one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let (distance, candidate, length) = candidates
        .into_iter()
        .map(|c| {
            let letters: Vec<char> = c.to_lowercase().chars().collect();
            (edits(&word, &letters), c, letters.len())
        })
        .min_by_key(|&(distance, ..)| distance)?;
    // A third of the letters may be wrong, one always, but never all of them.
    let longest = word.len().max(length);
    (distance <= (longest / 3).max(1) && distance < longest).then_some(candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours between `a` and `b` (optimal string alignment).
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

pub(super) fn suggest(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_refuses_strangers() {
        let keys = ["learning_rate", "latent", "batch", "steps"];
        assert_eq!(nearest("lerning_rate", keys), Some("learning_rate"));
        assert_eq!(nearest("Bacth", keys), Some("batch"));
        assert_eq!(nearest("step", keys), Some("steps"));
        assert_eq!(nearest("optimiser", keys), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("a", []), None);
    }
}
