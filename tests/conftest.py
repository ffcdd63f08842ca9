import resdeploy
