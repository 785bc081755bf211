# Table 8, row 5: DAT-T as it is, with 196 and 49 keys.
_base_ = '../imagenet/dat_t_300e_in1k.py'
