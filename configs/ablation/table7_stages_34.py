# Table 7, row 3: DAT-T as it is.
_base_ = '../imagenet/dat_t_300e_in1k.py'
