//! When a generator counts as collapsed.

use super::figures::LabelStatistics;

/// The least that the images of a generator must reach; 0 switches a measure off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collapse {
    /// Of [`LabelStatistics::diversity`].
    pub diversity: f64,
    /// Of [`LabelStatistics::entropy`], in bits.
    pub entropy: f64,
    /// Of [`LabelStatistics::information`], in bits.
    pub information: f64,
    /// Of [`LabelStatistics::found`].
    pub found: f64,
}

impl Default for Collapse {
    /// Limits that tell collapsed generators from healthy ones, for up to some hundred labels: docs/results.md has their
    /// figures. The entropy is that of rare labels too, so it has none.
    fn default() -> Self {
        Collapse { diversity: 0.2, entropy: 0.0, information: 0.03, found: 0.5 }
    }
}

impl Collapse {
    /// The first measure that is below its limit: its key in the config's table `loss`, and the reason as the end of a
    /// sentence. `None` means that the generator is healthy; a missing measure counts as healthy.
    pub fn alarm(&self, images: &LabelStatistics) -> Option<(&'static str, String)> {
        // The config's limits come from f32, whose f64 has digits that nobody wrote.
        let [diversity, entropy, information] =
            [self.diversity, self.entropy, self.information].map(|limit| limit as f32);
        let below = |value: Option<f64>, least: f64| value.filter(|v| *v < least || v.is_nan());
        if let Some(v) = below(images.diversity, self.diversity) {
            let text = format!("the diversity of its images is {v:.3}, at least {diversity} expected");
            return Some(("least_diversity", text));
        }
        if let Some(v) = below(images.entropy, self.entropy) {
            let text = format!(
                "the entropy of a label's mean probability is {v:.3} bits, at least {entropy} expected"
            );
            return Some(("least_entropy", text));
        }
        if let Some(v) = below(images.information, self.information) {
            let text = format!(
                "the labels that the teachers predict tell {v:.3} bits about the image, at least {information} expected"
            );
            return Some(("least_information", text));
        }
        below(images.found(), self.found).map(|_| {
            let (found, asked) = images.labels_found();
            let text = format!(
                "{found} of {asked} labels are found in its {} images, at least {:.0} % expected",
                images.images,
                100.0 * self.found
            );
            ("least_found", text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::LabelShare;
    use super::*;

    #[test]
    fn the_first_measure_below_its_limit_is_named() {
        let label = |predicted| LabelShare { predicted, ..LabelShare::new("t", "l", false) };
        let images = LabelStatistics {
            images: 100,
            labels: vec![label(9), label(0), label(0)],
            diversity: Some(0.4),
            entropy: Some(0.4),
            information: Some(0.02),
        };
        let alarm = |diversity, information, found| {
            let limits = Collapse { diversity, information, found, entropy: 0.0 };
            limits.alarm(&images).map(|(key, _)| key)
        };
        assert_eq!(alarm(0.5, 0.1, 0.5), Some("least_diversity"));
        assert_eq!(alarm(0.3, 0.1, 0.5), Some("least_information"));
        assert_eq!(alarm(0.3, 0.01, 0.5), Some("least_found"));
        assert_eq!(alarm(0.3, 0.01, 0.3), None);
        assert_eq!(alarm(0.0, 0.0, 0.0), None);
        let none = Collapse { diversity: 0.0, entropy: 0.0, information: 0.0, found: 0.0 };
        let (_, text) = Collapse { found: 0.5, ..none }.alarm(&images).unwrap();
        assert_eq!(text, "1 of 3 labels are found in its 100 images, at least 50 % expected");
        // A version that did not measure it, and a measure that is no number.
        let with = |diversity| LabelStatistics { diversity, ..images.clone() };
        assert_eq!(
            Collapse { entropy: 0.5, ..none }.alarm(&images).map(|(key, _)| key),
            Some("least_entropy")
        );
        let limits = Collapse { diversity: 0.5, ..none };
        assert_eq!(limits.alarm(&with(None)), None);
        assert!(limits.alarm(&with(Some(f64::NAN))).is_some());
    }
}
