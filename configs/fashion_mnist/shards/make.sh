#!/bin/sh
# Rebuilds train/ and test/ beside this script from Fashion-MNIST's four gzipped idx files, in the folder $1.
# The Debian package dataset-fashion-mnist has them in /usr/share/datasets/fashion-mnist. They are also at
# https://github.com/zalandoresearch/fashion-mnist
set -eu
source=${1:?usage: make.sh FOLDER_OF_IDX_FILES}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
classes='T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot'

rm -rf "$here/train" "$here/test"
python -m diffpipe pack "$source" "$here/train" --split train --per-class 1000 --classes "$classes" --prefix train
python -m diffpipe pack "$source" "$here/test" --split t10k --per-class 200 --classes "$classes" --prefix test
