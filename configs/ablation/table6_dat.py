# Table 6, row 7: DAT-T as it is.
_base_ = '../imagenet/dat_t_300e_in1k.py'
