from argparse import ArgumentParser

from mmdat.demo import write_shapes_coco


def main():
    parser = ArgumentParser(description='Draw a small data set in the layout of COCO')
    parser.add_argument('out', help='folder to make, to be given as data_root')
    parser.add_argument('--num-train', type=int, default=240, help='training images')
    parser.add_argument('--num-val', type=int, default=40, help='validation images')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same images')
    args = parser.parse_args()
    try:
        written = write_shapes_coco(args.out, args.num_train, args.num_val, seed=args.seed)
    except FileExistsError as error:
        parser.error(str(error))
    print(f'{args.num_train} + {args.num_val} images', 'written to' if written else 'are in', args.out)


if __name__ == '__main__':
    main()
