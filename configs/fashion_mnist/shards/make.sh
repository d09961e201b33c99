#!/bin/sh
# Makes train/ and test/ beside this script from the four gzipped idx files of Fashion-MNIST, whose folder is $1.
# They come with the Debian package dataset-fashion-mnist (then $1 is /usr/share/datasets/fashion-mnist), or from
# https://github.com/zalandoresearch/fashion-mnist
set -eu
source=${1:?usage: make.sh FOLDER_OF_IDX_FILES}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
classes='T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot'

rm -rf "$here/train" "$here/test"
python -m diffpipe pack "$source" "$here/train" --split train --per-class 1000 --classes "$classes" --prefix train
python -m diffpipe pack "$source" "$here/test" --split t10k --per-class 200 --classes "$classes" --prefix test
