Ž
"serve*g
pair_

left
left:0
'
right
right:0ÿÿÿÿÿÿÿÿÿ
sum
sum:0*™
serving_default…
/
image&
image:0ÿÿÿÿÿÿÿÿÿ'
boxes
boxes:0ÿÿÿÿÿÿÿÿÿ)
scores
scores:0ÿÿÿÿÿÿÿÿÿ
