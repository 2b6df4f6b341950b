"""stub"""
FitResult=fit=None
